"""`bella claims`: the paper's seven claims, each with the suite that tests it, our figure, and whether it holds.

Differences are between methods on the same seeds: mean, and standard error over seeds. A claim that one method keeps up with
another holds where no difference lies more than two standard errors on the wrong side; that it is better, where every one lies
more than two on the right side. One seed has no standard error, and decides nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bella.errors import UserError
from benchmarks.records import FILE, Record
from benchmarks.stored import find_runs

Verdict = Literal["holds", "does not hold", "undecided", "not yet run"]
"""Of what is decided by differences. Claim 1, which is counted, says up to which rank it holds."""

PAPER_BACKBONE = "open_clip:ViT-B-32"
PAPER_TARGETS = ("c_fc", "c_proj")
PAPER_PARAMETERS = 260_000
CLASSIFICATION = ("cifar10", "cifar100", "stl10", "imagenet", "camelyon17", "domainnet")
LOW_RANK, FULL_RANK = ("bella-ensemble", "bella-svgd"), ("ensemble", "svgd")


@dataclass(frozen=True)
class Finding:
    """A claim and what was found of it."""

    number: int
    claim: str
    suite: str
    figure: str
    verdict: str


@dataclass(frozen=True)
class Difference:
    """Ours less theirs on one problem: mean over seeds, and its standard error (None: one seed). Positive is better."""

    what: str
    mean: float
    error: float | None

    def __str__(self) -> str:
        """For reading: "ours − theirs +0.31 ± 0.12"."""
        spread = "" if self.error is None else f" ± {self.error:.2f}"
        return f"{self.what} {self.mean:+.2f}{spread}"


class Records:
    """All records below a folder, by problem, row and seed."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._rows: dict[tuple[str, str], dict[int, Record]] = {}
        for record in records:
            self._rows.setdefault((record.run.problem, record.run.label), {})[record.run.seed] = record

    @classmethod
    def below(cls, folder: Path) -> Records:
        """Records of one suite's folder, or of a folder of such folders.

        Raises:
            UserError: there is no such folder, or a damaged record in it.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; `bella run paper-cifar --out {folder}` makes one")
        suites = [path for path in (folder, *sorted(folder.iterdir())) if any(path.glob(f"runs/*/*/*/{FILE}"))]
        return cls(run.record for suite in suites for run in find_runs(suite))

    def problems(self) -> list[str]:
        """Those with records."""
        return sorted({problem for problem, _ in self._rows})

    def rows(self, problem: str) -> list[str]:
        """Rows of a problem."""
        return sorted(label for own, label in self._rows if own == problem)

    def values(self, problem: str, row: str, task: str, metric: str) -> dict[int, float]:
        """A metric's value for each seed that defines it."""
        members = self._rows.get((problem, row), {})
        found = {seed: record.tasks.get(task, {}).get(metric) for seed, record in members.items()}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def metrics(self, problem: str, row: str, task: str) -> list[str]:
        """Names of a task's metrics in a row."""
        return list(dict.fromkeys(m for record in self._rows.get((problem, row), {}).values() for m in record.tasks.get(task, {})))

    def setting(self, problem: str, row: str, name: str) -> float | None:
        """A number that a row's runs were made with: "rank" or "particles"."""
        record = next(iter(self._rows[problem, row].values()))
        value = record.run.config.get(name, record.run.config.get("parameterisation", {}).get(name))
        return None if value is None else float(value)

    def difference(
        self, problem: str, ours: str, theirs: str, task: str, metric: str, scale: float, what: str
    ) -> Difference | None:
        """Ours less theirs on the seeds that both have; a negative scale where less is better."""
        a, b = (self.values(problem, row, task, metric) for row in (ours, theirs))
        values = [scale * (a[seed] - b[seed]) for seed in a if seed in b]
        if not values:
            return None
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return Difference(what, statistics.fmean(values), error)

    def best(self, problem: str, rows: Sequence[str], task: str, metric: str) -> str | None:
        """The row with the highest mean of a metric."""
        means = {row: statistics.fmean(v) for row in rows if (v := list(self.values(problem, row, task, metric).values()))}
        return max(means, key=lambda row: means[row]) if means else None


def keeps_up(differences: Sequence[Difference]) -> Verdict:
    """Whether none is worse beyond two standard errors."""
    if any(d.error is None for d in differences):
        return "undecided"
    return "does not hold" if any(d.mean < -2 * (d.error or 0) for d in differences) else "holds"


def better(differences: Sequence[Difference]) -> Verdict:
    """Whether all are better beyond two standard errors."""
    if any(d.error is None for d in differences):
        return "undecided"
    if all(d.mean > 2 * (d.error or 0) for d in differences):
        return "holds"
    return "does not hold" if any(d.mean < -2 * (d.error or 0) for d in differences) else "undecided"


def findings(folder: Path) -> list[Finding]:
    """The seven claims against the records below a folder.

    Raises:
        UserError: the folder is missing, or a record in it is damaged.
    """
    records = Records.below(folder)
    return [
        _parameters(),
        _judged(
            records, 2, "low-rank keeps up with full-rank in accuracy", "paper-cifar, ...", CLASSIFICATION, _accuracy, keeps_up
        ),
        _judged(
            records,
            3,
            "best on unseen hospital, domains and corruption",
            "paper-camelyon, paper-domainnet, paper-cifar",
            ("camelyon17", "domainnet", "cifar10"),
            _shifts,
            better,
        ),
        _judged(
            records,
            4,
            "bella-svgd as good as svgd, uncertainty slightly better",
            "paper-cifar, ...",
            CLASSIFICATION,
            _uncertainty,
            keeps_up,
        ),
        _judged(
            records, 5, "averaging keeps or improves robustness", "paper-cifar", ("cifar10", "cifar100"), _robustness, keeps_up
        ),
        _judged(records, 6, "uncertainty tracks human disagreement (VQA)", "paper-vqa", ("vqav2",), _human, better),
        _judged(
            records,
            7,
            "levels off near rank 16; more particles help",
            "sweep-rank, sweep-particles",
            ("camelyon17",),
            _sweeps,
            keeps_up,
        ),
    ]


def _judged(
    records: Records,
    number: int,
    claim: str,
    suite: str,
    problems: Sequence[str],
    measure: Callable[[Records, str], list[Difference]],
    judge: Callable[[Sequence[Difference]], Verdict],
) -> Finding:
    """A claim on the paper's own data; what other data give is shown beside it and decides nothing."""
    own = {problem: found for problem in problems if (found := measure(records, problem))}
    other = {problem: found for problem in records.problems() if problem not in problems and (found := measure(records, problem))}
    parts = [f"{problem}: {', '.join(map(str, found))}" for problem, found in (own or other).items()]
    if own:
        return Finding(number, claim, suite, "; ".join(parts), judge([d for found in own.values() for d in found]))
    return Finding(number, claim, suite, f"elsewhere: {'; '.join(parts)}" if parts else "–", "not yet run")


def _parameters() -> Finding:
    """Exact, from the architecture."""
    from benchmarks.costs import backbone_costs

    found = backbone_costs(PAPER_BACKBONE, particles=1, ranks=[1, 2, 3, 4, 8, 16], targets=PAPER_TARGETS, classes=None)
    rows = {row["rank"]: row for row in found["low_rank"]}
    saved = ", ".join(f"{100 * (1 - row['ratio']):.2f} % at r = {rank}" for rank, row in rows.items())
    nearest = min(rows, key=lambda rank: abs(rows[rank]["trainable_parameters_per_particle"] - PAPER_PARAMETERS))
    count = rows[nearest]["trainable_parameters_per_particle"]
    largest = max(rank for rank, row in rows.items() if round(1 - row["ratio"], 3) >= 0.997)
    figure = (
        f"{saved}; {PAPER_PARAMETERS // 1000} K is no whole rank on {' + '.join(PAPER_TARGETS)}, the nearest is {count:,} at r = "
        f"{nearest}; the release's default is 4"
    )
    return Finding(1, "99.7 % fewer trainable parameters a particle", "paper-costs", figure, f"holds up to r = {largest}")


def _points(
    records: Records, problem: str, pairs: Iterable[tuple[str, str]], task: str, metric: str, name: str
) -> list[Difference]:
    found = [records.difference(problem, a, b, task, metric, 100, f"{a} − {b} {name}") for a, b in pairs]
    return [difference for difference in found if difference is not None]


def _accuracy(records: Records, problem: str) -> list[Difference]:
    return _points(records, problem, zip(LOW_RANK, FULL_RANK, strict=True), "classification", "accuracy", "points")


def _shifts(records: Records, problem: str) -> list[Difference]:
    """The best of ours against the best of the others, where the data are not those learned."""
    asked = {"camelyon17": ("classification", "accuracy"), "domainnet": ("domain", "mean/accuracy")}
    task, metric = asked.get(problem, ("corruption", "mean/accuracy"))
    others = [row for row in records.rows(problem) if not row.startswith("bella-")]
    ours, theirs = records.best(problem, LOW_RANK, task, metric), records.best(problem, others, task, metric)
    return _points(records, problem, [(ours, theirs)], task, metric, "points") if ours and theirs else []


def _uncertainty(records: Records, problem: str) -> list[Difference]:
    asked = (
        ("accuracy", 100, "accuracy (points)"),
        ("nll", -1, "NLL saved"),
        ("ece", -100, "ECE saved (points)"),
        ("misclassification/auroc/entropy", 100, "misclassification AUROC (points)"),
    )
    found = [
        records.difference(problem, "bella-svgd", "svgd", "classification", metric, scale, what) for metric, scale, what in asked
    ]
    found.append(records.difference(problem, "bella-svgd", "svgd", "ood", "far/mean/auroc/entropy", 100, "far OOD AUROC (points)"))
    return [difference for difference in found if difference is not None]


def _robustness(records: Records, problem: str) -> list[Difference]:
    """Averaged particles against one, at every strength of PGD that was run."""
    found = []
    for ours in LOW_RANK:
        for metric in records.metrics(problem, ours, "adversarial"):
            if not (metric.startswith("pgd/") and metric.endswith("/accuracy")):
                continue
            what = f"{ours} − bella-single {metric.rpartition('/')[0]}"
            found.append(records.difference(problem, ours, "bella-single", "adversarial", metric, 100, what))
    return [difference for difference in found if difference is not None]


def _human(records: Records, problem: str) -> list[Difference]:
    """Rank correlation of entropy with the entropy of human answers: better than none."""
    found = []
    for row in LOW_RANK:
        values = list(records.values(problem, row, "vqa", "human/rank_correlation/entropy").values())
        if values:
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
            found.append(Difference(f"{row} rank correlation", statistics.fmean(values), error))
    return found


def _sweeps(records: Records, problem: str) -> list[Difference]:
    """Rank 16 against the highest rank, and the most particles against the fewest; within the rows of a sweep."""
    found = []
    for method in LOW_RANK:
        for setting, best in (("rank", 16.0), ("particles", math.inf)):
            prefix = f"{method}-{setting[0] if setting == 'rank' else 'n'}"
            rows = {
                value: row
                for row in records.rows(problem)
                if row.startswith(prefix) and (value := records.setting(problem, row, setting)) is not None
            }
            if len(rows) < 2:
                continue
            ours = max(value for value in rows if value <= best)
            theirs = max(rows) if setting == "rank" else min(rows)
            if ours != theirs:
                what = f"{rows[ours]} − {rows[theirs]} points"
                found.append(records.difference(problem, rows[ours], rows[theirs], "classification", "accuracy", 100, what))
    return [difference for difference in found if difference is not None]
