"""Domain shift: accuracy and calibration on every domain, their mean and the worst."""

from __future__ import annotations

import statistics
from typing import Any, ClassVar

from bella.errors import UserError
from benchmarks.task import Column, Posterior, Task

PREFIX = "domain-"


class Domain(Task):
    """Of problems whose further sets are called domain-NAME (domainfolder)."""

    tables: ClassVar[dict[str, tuple[Column, ...]]] = {
        "Domains": (
            Column("test/accuracy", "Left-out acc. (%)", "higher", 100, 1),
            Column("mean/accuracy", "Mean acc. (%)", "higher", 100, 1),
            Column("worst/accuracy", "Worst acc. (%)", "higher", 100, 1),
            Column("test/nll", "Left-out NLL", "lower"),
            Column("mean/nll", "Mean NLL", "lower"),
            Column("test/ece", "Left-out ECE (%)", "lower", 100, 1),
            Column("mean/ece", "Mean ECE (%)", "lower", 100, 1),
        )
    }
    caption = (
        "Accuracy in per cent, NLL in nats, ECE with 15 equal bins, L1 norm: on the domain that was left out of training, the mean "
        "over all domains (held-out images of those learned), and the worst domain"
    )

    def evaluate(self, posterior: Posterior, options: Any) -> dict[str, float | None]:
        """Metrics DOMAIN/METRIC, test/METRIC, mean/METRIC, worst/accuracy."""
        from bella import predictive
        from benchmarks import metrics

        names = [name for name in posterior.data().further if name.startswith(PREFIX)]
        if not names:
            raise UserError("task domain: this problem has no domains (problem domainfolder has)")
        found: dict[str, float | None] = {}
        for name in [*names, "test"]:
            stored = posterior.predictions(name)
            averaged = predictive.log_predictive(stored.logits.double(), posterior.average)
            short = name.removeprefix(PREFIX)
            found[f"{short}/accuracy"] = metrics.accuracy(averaged, stored.targets)
            found[f"{short}/nll"] = metrics.nll(averaged, stored.targets)
            found[f"{short}/ece"] = metrics.expected_calibration_error(averaged, stored.targets)
        for metric in ("accuracy", "nll", "ece"):
            known = [value for name in names if (value := found[f"{name.removeprefix(PREFIX)}/{metric}"]) is not None]
            found[f"mean/{metric}"] = statistics.fmean(known) if known else None
            if metric == "accuracy":
                found["worst/accuracy"] = min(known) if known else None
        return found
