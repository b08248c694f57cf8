"""Domain shift: accuracy and calibration on every domain, their mean and the worst."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, ClassVar

from bella.errors import UserError
from benchmarks.task import Column, Posterior, Task

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.problem import Data

PREFIX = "domain-"


class Domain(Task):
    """Of problems whose further sets are called domain-NAME (domainfolder, domainnet, camelyon17, imagenet)."""

    tables: ClassVar[dict[str, tuple[Column, ...]]] = {
        "Domains": (
            Column("test/accuracy", "Test acc. (%)", "higher", 100, 1),
            Column("mean/accuracy", "Mean acc. (%)", "higher", 100, 1),
            Column("worst/accuracy", "Worst acc. (%)", "higher", 100, 1),
            Column("test/nll", "Test NLL", "lower"),
            Column("mean/nll", "Mean NLL", "lower"),
            Column("test/ece", "Test ECE (%)", "lower", 100, 1),
            Column("mean/ece", "Mean ECE (%)", "lower", 100, 1),
        )
    }
    caption = (
        "Accuracy in per cent, NLL in nats, ECE with 15 equal bins, L1 norm: on the test split (of domainfolder: the domain left "
        "out of training), the mean over all domains (held-out images of those learned), and the worst domain; where a domain has "
        "some of the classes only, predictions are restricted to them"
    )

    def evaluate(self, posterior: Posterior, options: Any) -> dict[str, float | None]:
        """Metrics DOMAIN/METRIC, test/METRIC, mean/METRIC, worst/accuracy."""
        from bella import predictive
        from benchmarks import metrics

        data = posterior.data()
        names = [name for name in data.further if name.startswith(PREFIX)]
        if not names:
            raise UserError("task domain: this problem has no domains (domainfolder, domainnet and camelyon17 have)")
        found: dict[str, float | None] = {}
        for name in [*names, "test"]:
            stored = posterior.predictions(_split(name, data))
            averaged = predictive.log_predictive(stored.logits.double(), posterior.average)
            classes = getattr(data.further.get(name), "classes", None)
            if classes is not None:
                averaged = restricted(averaged, classes)
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


def _split(name: str, data: Data) -> str:
    """The name under which a set is predicted: a domain that is the test split or validation itself is predicted once."""
    own = data.further.get(name)
    return "test" if own is data.test else "validation" if own is data.validation else name


def restricted(log_probabilities: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Predictions (N, C) given that the class is one of some; the others have probability 0."""
    import torch

    other = torch.ones(log_probabilities.shape[1], dtype=torch.bool)
    other[list(classes)] = False
    return log_probabilities.masked_fill(other, -torch.inf).log_softmax(-1)
