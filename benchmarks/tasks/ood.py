"""Out-of-distribution detection: is an image unlike what was learned? The test split against other sets, in groups."""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from benchmarks.options import Options
from benchmarks.task import Column, Posterior, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from torch import Tensor

    from benchmarks.figures import Rows
    from benchmarks.stored import Array, StoredRun

SCORES = ("max_probability", "entropy", "expected_entropy", "mutual_information", "energy")


class OutOfDistributionOptions(Options):
    """near: sets of the same kind as the problem's (left out: those the problem names); far: of another kind.

    A set is one of the problem's own (unseen-digits), "easy-vqa-images", "noise", "folder:PATH", or "problem:NAME", that problem's
    test split. limit: images a set.
    """

    near: tuple[str, ...] | None = None
    far: tuple[str, ...] = ("easy-vqa-images", "noise")
    limit: int = Field(default=500, ge=1)


class OutOfDistribution(Task):
    """AUROC, AUPR both ways and FPR at 95 % TPR of five scores, for each set and the mean of a group."""

    options = OutOfDistributionOptions
    tables: ClassVar[dict[str, tuple[Column, ...]]] = {
        f"{group.capitalize()} OOD": (
            *(
                Column(f"{group}/mean/auroc/{score}", f"AUROC {title}", "higher", 100, 1)
                for score, title in zip(SCORES, ("max. p", "entropy", "exp. entropy", "mutual inf.", "energy"), strict=True)
            ),
            Column(f"{group}/mean/aupr_out/entropy", "AUPR out", "higher", 100, 1),
            Column(f"{group}/mean/aupr_in/entropy", "AUPR in", "higher", 100, 1),
            Column(f"{group}/mean/fpr95/entropy", "FPR95", "lower", 100, 1),
        )
        for group in ("near", "far")
    }
    caption = (
        "Test split against out-of-distribution sets, mean over the sets of a group, in per cent; out-of-distribution is the "
        "positive class (AUPR in: the test split is); FPR95: share of test images taken for out-of-distribution when 95 % of those "
        "are found; AUPR and FPR95 by predictive entropy; energy: mean over particles of -logsumexp of the logits"
    )

    def evaluate(self, posterior: Posterior, options: OutOfDistributionOptions) -> dict[str, float | None]:
        """Metrics GROUP/SET/METRIC/SCORE, and GROUP/mean/METRIC/SCORE."""
        from benchmarks.image_sets import image_set

        data = posterior.data()
        inside = scores(posterior.predictions("test").logits)
        found: dict[str, float | None] = {}
        for group, names in (("near", data.near if options.near is None else options.near), ("far", options.far)):
            own = []
            for name in names:
                if name in data.further:
                    outside = posterior.predictions(name)
                else:
                    load = functools.partial(image_set, name, data.image_size, options.limit)
                    outside = posterior.predictions(stored_name(name, options.limit), load)
                own.append(detection(inside, scores(outside.logits)))
                found |= {f"{group}/{name}/{metric}": value for metric, value in own[-1].items()}
            for metric in own[0] if own else ():
                values = [value for each in own if (value := each[metric]) is not None]
                found[f"{group}/mean/{metric}"] = statistics.fmean(values) if values else None
        return found

    def figures(self, rows: Rows) -> dict[str, Figure]:
        """ROC of telling sets from the test split by predictive entropy, a panel a set, a line of panels for each few methods."""
        import numpy as np

        from benchmarks.figures import POINTS, draw_lines, in_groups, legend, panels
        from benchmarks.stored import entropy

        first = next(iter(rows.values()))[0].record
        sets = list(dict.fromkeys(key.rsplit("/", 2)[0] for key in first.tasks["ood"] if "/mean/" not in key))
        limit = first.task_results["ood"].options.get("limit", 0)
        panel_of = [(labels, name) for labels in in_groups(rows) for name in sets]
        figure, axes = panels(len(panel_of), columns=len(sets))
        drawn = False
        for place, (labels, name) in zip(axes, panel_of, strict=True):

            def curve(runs: Sequence[StoredRun], name: str = name) -> tuple[Array, Array] | None:
                inside = [found for run in runs if (found := run.probabilities("test")) is not None]
                short = name.partition("/")[2]
                outside = [
                    found for run in runs for s in (short, stored_name(short, limit)) if (found := run.probabilities(s)) is not None
                ]
                if not inside or not outside:
                    return None
                values = [np.sort(np.concatenate([entropy(p) for p, _ in side])) for side in (inside, outside)]
                thresholds = np.quantile(np.concatenate(values), np.linspace(1, 0, POINTS))
                false, true = (np.array([0.0, *(1 - np.searchsorted(v, thresholds) / len(v))]) for v in values)
                return false, true

            place.plot([0, 1], [0, 1], color="#888888", linewidth=1)
            drawn |= draw_lines(place, rows, curve, labels, marker="")
            place.set(title=name, xlabel="test images taken for OOD", ylabel="OOD images found")
        if not drawn:
            return {}
        legend(figure, axes)
        return {"ood-roc": figure}


def stored_name(name: str, limit: int) -> str:
    """The name under which predictions on a set that is not the problem's own are stored."""
    return f"ood-{name.replace(':', '-').replace('/', '-')}-{limit}"


def scores(logits: Tensor) -> dict[str, Tensor | None]:
    """Each score, (n, N, C) -> (N,), higher for what looks out of distribution; None: one particle has no mutual information."""
    from bella import predictive

    logits = logits.double()
    several = logits.shape[0] > 1
    return {
        "max_probability": -predictive.log_mean_probabilities(logits).max(-1).values,
        "entropy": predictive.total_uncertainty(logits),
        "expected_entropy": predictive.aleatoric_uncertainty(logits),
        "mutual_information": predictive.epistemic_uncertainty(logits) if several else None,
        "energy": -logits.logsumexp(-1).mean(0),
    }


def detection(inside: dict[str, Any], outside: dict[str, Any]) -> dict[str, float | None]:
    """METRIC/SCORE of telling one set's scores from another's."""
    import torch

    from benchmarks import metrics

    found: dict[str, float | None] = {}
    for name in SCORES:
        if inside[name] is None:
            found |= {f"{metric}/{name}": None for metric in ("auroc", "aupr_out", "aupr_in", "fpr95")}
            continue
        values = torch.cat([inside[name], outside[name]])
        positive = torch.arange(len(values)) >= len(inside[name])
        found[f"auroc/{name}"] = metrics.auroc(values, positive)
        found[f"aupr_out/{name}"] = metrics.average_precision(values, positive)
        found[f"aupr_in/{name}"] = metrics.average_precision(-values, ~positive)
        found[f"fpr95/{name}"] = metrics.false_positive_rate(values, positive)
    return found
