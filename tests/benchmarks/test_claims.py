"""The paper's claims, judged on records whose answer is known."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bella.errors import UserError
from benchmarks.claims import Difference, Records, better, findings, keeps_up
from benchmarks.cli import app
from benchmarks.records import Record, RunInfo

Metrics = Mapping[str, Mapping[str, float | None]]


def record(problem: str, label: str, seed: int, tasks: Metrics, **config: object) -> Record:
    info = RunInfo(
        problem=problem,
        method=label,
        label=label,
        seed=seed,
        backbone="b",
        weights="w",
        data="d",
        hash=f"{label}{seed}",
        config={"particles": 5, "parameterisation": {"rank": 4}, "seed": seed, **config},
    )
    kept = {name: dict(metrics) for name, metrics in tasks.items()}
    return Record(schema_=1, run=info, training={}, tasks=kept, task_results={}, costs={}, environment={})


def accuracy(value: float | None) -> Metrics:
    return {"classification": {"accuracy": value}}


def test_difference_is_paired_by_seed() -> None:
    ours, theirs = [0.80, 0.82, 0.85], [0.79, 0.83, 0.80]
    rows = [record("cifar10", "bella-svgd", s, accuracy(v)) for s, v in enumerate(ours)]
    rows += [record("cifar10", "svgd", s, accuracy(v)) for s, v in enumerate(theirs)]
    rows += [record("cifar10", "svgd", 7, accuracy(0.1)), record("cifar10", "bella-svgd", 8, accuracy(None))]
    found = Records(rows).difference("cifar10", "bella-svgd", "svgd", "classification", "accuracy", 100, "points")
    assert found is not None
    each = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    assert found.mean == pytest.approx(statistics.fmean(each))
    assert found.error == pytest.approx(statistics.stdev(each) / 3**0.5)


@pytest.mark.parametrize(
    ("mean", "error", "keeping", "improving"),
    [
        (0.5, 0.1, "holds", "holds"),
        (0.1, 0.1, "holds", "undecided"),
        (-0.1, 0.1, "holds", "undecided"),
        (-0.3, 0.1, "does not hold", "does not hold"),
        (5.0, None, "undecided", "undecided"),
    ],
)
def test_verdicts(mean: float, error: float | None, keeping: str, improving: str) -> None:
    assert keeps_up([Difference("", mean, error)]) == keeping
    assert better([Difference("", mean, error)]) == improving
    assert keeps_up([Difference("", 1.0, 0.1), Difference("", mean, error)]) == keeping


def test_every_claim_is_judged(tmp_path: Path) -> None:
    from benchmarks.records import write_record

    for seed in range(3):
        shift = 0.001 * seed
        for label, value in {
            "ensemble": 0.80,
            "svgd": 0.81,
            "bella-single": 0.7,
            "bella-ensemble": 0.9,
            "bella-svgd": 0.75,
        }.items():
            tasks = {
                "classification": {
                    "accuracy": value + shift * value,
                    "nll": 1 - value,
                    "ece": 0.1,
                    "misclassification/auroc/entropy": None,
                },
                "corruption": {"mean/accuracy": value + shift * value},
                "adversarial": {"pgd/0.0314/accuracy": value / 2 + shift * value, "fgsm/0.0314/accuracy": 0.0},
            }
            made = record("cifar10", label, seed, tasks)
            write_record(made, tmp_path / "paper-cifar" / "runs" / "cifar10" / label / f"seed{seed}-x")
        human = record("vqav2", "bella-svgd", seed, {"vqa": {"human/rank_correlation/entropy": 0.3 + shift}})
        write_record(human, tmp_path / "paper-vqa" / "runs" / "vqav2" / "bella-svgd" / f"seed{seed}-x")
        for rank, value in {1: 0.8, 16: 0.9, 32: 0.9}.items():
            row = f"bella-svgd-r{rank}"
            made = record("camelyon17", row, seed, accuracy(value + shift), parameterisation={"rank": rank})
            write_record(made, tmp_path / "sweep-rank" / "runs" / "camelyon17" / row / f"seed{seed}-x")
    found = {finding.number: finding for finding in findings(tmp_path)}
    assert list(found) == [1, 2, 3, 4, 5, 6, 7]
    assert found[1].verdict == "holds up to r = 3"
    assert "99.79 % at r = 2" in found[1].figure
    assert "99.58 % at r = 4" in found[1].figure
    assert "276,480 at r = 3" in found[1].figure
    assert found[2].verdict == "does not hold"  # bella-svgd is 6 points below svgd
    assert "bella-ensemble − ensemble points +10.0" in found[2].figure
    assert found[3].verdict == "holds"
    assert found[4].verdict == "does not hold"
    assert found[5].verdict == "holds"
    assert found[6].verdict == "holds"
    assert found[7].verdict == "holds"
    assert "bella-svgd-r16 − bella-svgd-r32" in found[7].figure


def test_other_data_decide_nothing(tmp_path: Path) -> None:
    from benchmarks.records import write_record

    for label in ("bella-ensemble", "ensemble"):
        write_record(record("digits", label, 0, accuracy(0.9)), tmp_path / "runs" / "digits" / label / "seed0-x")
    found = findings(tmp_path)[1]
    assert found.verdict == "not yet run"
    assert found.figure.startswith("elsewhere: digits: ")


def test_the_command_prints_seven_rows_or_json(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["claims", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert sum(line.startswith("| ") for line in shown.stdout.splitlines()) == 8
    found = json.loads(CliRunner().invoke(app, ["claims", str(tmp_path), "--json"]).stdout)["claims"]
    assert [claim["verdict"] for claim in found[1:]] == ["not yet run"] * 6
    with pytest.raises(UserError, match="no such folder"):
        findings(tmp_path / "nowhere")
