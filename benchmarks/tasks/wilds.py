"""WILDS: what the benchmark's own evaluation says of the averaged prediction."""

from __future__ import annotations

from typing import Any, ClassVar

from bella.errors import UserError
from benchmarks.task import Column, Posterior, Task


class Wilds(Task):
    """Of problems that come through the package wilds (camelyon17); on the test split and on validation."""

    tables: ClassVar[dict[str, tuple[Column, ...]]] = {
        "WILDS": (
            Column("test/acc_avg", "Test acc. (%)", "higher", 100, 1),
            Column("test/acc_wg", "Test worst (%)", "higher", 100, 1),
            Column("validation/acc_avg", "Val. acc. (%)", "higher", 100, 1),
            Column("validation/acc_wg", "Val. worst (%)", "higher", 100, 1),
        )
    }
    caption = (
        "wilds' own evaluation (Koh et al. 2021, arXiv 2012.07421) in per cent: accuracy on its test and out-of-distribution "
        "validation splits, and of the worst group (CAMELYON17: slide) in each"
    )

    def evaluate(self, posterior: Posterior, options: Any) -> dict[str, float | None]:
        """Metrics SPLIT/NAME, all that wilds gives; an empty group's accuracy is left out."""
        from bella import predictive
        from benchmarks.wilds_adapter import WildsSplit

        data = posterior.data()
        found: dict[str, float | None] = {}
        for name, examples in (("test", data.test), ("validation", data.validation)):
            if not isinstance(examples, WildsSplit):
                raise UserError("task wilds: this problem does not come through wilds (camelyon17 does)")
            averaged = predictive.log_predictive(posterior.predictions(name).logits.double(), posterior.average)
            told = examples.evaluate(averaged.argmax(-1))
            empty = {key.removeprefix("count_") for key, value in told.items() if key.startswith("count_") and not value}
            found |= {f"{name}/{key}": value for key, value in told.items() if key.partition("_")[2] not in empty}
        return found
