"""Figures of predicted classes on the test split, for every task that predicts classes (classification, VQA)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.figures import POINTS, Rows, draw_lines, in_groups, legend, panels, styles
from benchmarks.stored import BINS, Array, StoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_IN_A_BIN = 5
"""Bins with fewer examples are not drawn: their accuracy says nothing."""


def pooled(runs: Sequence[StoredRun]) -> tuple[Array, Array] | None:
    """Confidence and correctness of all seeds' test examples; None where no predictions are stored."""
    found = [stored for run in runs if (stored := run.probabilities("test")) is not None]
    if not found:
        return None
    return (
        np.concatenate([p.max(-1) for p, _ in found]),
        np.concatenate([p.argmax(-1) == targets for p, targets in found]).astype(float),
    )


def reliability(rows: Rows) -> Figure | None:
    """Accuracy over confidence, a line a method, and how many examples each bin has."""

    def binned(runs: Sequence[StoredRun]) -> tuple[Array, Array] | None:
        stored = pooled(runs)
        if stored is None:
            return None
        confidence, right = stored
        place = np.minimum((confidence * BINS).astype(int), BINS - 1)
        bins = [b for b in range(BINS) if (place == b).sum() >= LEAST_IN_A_BIN]
        return (
            np.array([confidence[place == b].mean() for b in bins]),
            np.array([right[place == b].mean() for b in bins]),
        )

    groups = in_groups(rows)
    figure, axes = panels(len(groups), width=4.2, height=3.8)
    drawn = False
    for place, labels in zip(axes, groups, strict=True):
        place.plot([0, 1], [0, 1], color="#888888", linewidth=1)
        drawn |= draw_lines(place, rows, binned, labels)
        place.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    if not drawn:
        return None
    legend(figure, axes, each=True)
    return figure


def risk_coverage(rows: Rows) -> Figure | None:
    """Error rate of the most confident examples over the share of examples kept."""

    def curve(runs: Sequence[StoredRun]) -> tuple[Array, Array] | None:
        stored = pooled(runs)
        if stored is None:
            return None
        confidence, right = stored
        wrong = 1 - right[np.argsort(-confidence, kind="stable")]
        counts = np.unique(np.linspace(1, len(wrong), POINTS).round().astype(int))
        return counts / len(wrong) * 100, wrong.cumsum()[counts - 1] / counts * 100

    groups = in_groups(rows)
    figure, axes = panels(len(groups), width=4.2, height=3.4)
    drawn = [draw_lines(place, rows, curve, labels, marker="") for place, labels in zip(axes, groups, strict=True)]
    if not any(drawn):
        return None
    top = max(place.get_ylim()[1] for place in axes)
    for place in axes:
        place.set(xlabel="coverage (%)", ylabel="error rate (%)", xlim=(0, 100), ylim=(0, top))
    legend(figure, axes, each=True)
    return figure


def parameters(rows: Rows, task: str) -> Figure | None:
    """Accuracy over what all particles train together."""
    figure, (axes,) = panels(1, width=5.2, height=3.6)
    drawn = False
    for label, style in styles(rows).items():
        runs = rows[label]
        known = [value for run in runs if (value := run.record.tasks[task].get("accuracy")) is not None]
        if known:
            trained = float(runs[0].record.costs["trainable_parameters"] or 0)
            spread = 100 * float(np.std(known, ddof=1)) if len(known) > 1 else None
            axes.errorbar(
                [trained], [100 * float(np.mean(known))], yerr=spread, label=label, **{**style, "linestyle": "", "markersize": 7}
            )
            drawn = True
    if not drawn:
        return None
    axes.set_xscale("log")
    axes.set(xlabel="trained parameters, all particles", ylabel="accuracy (%)")
    legend(figure, [axes])
    return figure


def distances(rows: Rows) -> Figure | None:
    """Distances between particles in weights, a heat map a method (first seed)."""

    def matrix(run: StoredRun) -> Array | None:
        stored = run.distances()
        return None if stored is None else stored["weights"]

    return heat_maps(rows, matrix, "{:.2g}", "Euclidean distance of weights")


def disagreement(rows: Rows) -> Figure | None:
    """Share of test examples on which two particles differ, a heat map a method (first seed)."""

    def matrix(run: StoredRun) -> Array | None:
        stored = run.predictions("test")
        if stored is None:
            return None
        classes = stored[0].argmax(-1)
        return 100 * (classes[:, None] != classes[None]).mean(-1)

    return heat_maps(rows, matrix, "{:.1f}", "disagreement (%)")


def heat_maps(rows: Rows, matrix: Callable[[StoredRun], Array | None], form: str, title: str) -> Figure | None:
    """One matrix a method with several particles."""
    found = {label: m for label, runs in rows.items() if (m := matrix(runs[0])) is not None and len(m) > 1}
    if not found:
        return None
    figure, axes = panels(len(found), columns=4, width=2.3, height=2.3)
    largest = max(float(m.max()) for m in found.values()) or 1.0
    image: Any = None
    for place, (label, m) in zip(axes, found.items(), strict=True):
        image = place.imshow(m, vmin=0, vmax=largest, cmap="cividis")
        place.grid(visible=False)
        place.set_title(label, fontsize=9)
        few = len(m) <= 6
        place.set_xticks(range(len(m)) if few else ())
        place.set_yticks(range(len(m)) if few else ())
        if few:
            for i, j in np.ndindex(m.shape):
                colour = "black" if m[i, j] > 0.6 * largest else "white"
                place.text(j, i, form.format(m[i, j]), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, label=title, shrink=0.8)
    return figure
