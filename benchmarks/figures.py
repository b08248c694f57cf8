"""Figures from stored records and logits, never from a re-run: one style for all methods.

Colours are Okabe and Ito's, told apart by the colour-blind; markers and dashes tell methods apart in grey print too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.records import write_bytes
from benchmarks.stored import Array, StoredRun
from benchmarks.tables import answered_tasks, group_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Mapping[str, Sequence[StoredRun]]
"""A problem's runs by row: a method's label -> its seeds."""

ROWS_A_PANEL = 8
"""Lines that one can follow in one panel; there is a colour for each."""

POINTS = 200
"""Of a curve that has one an example: more would not be seen."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
SETTINGS: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "bella",
    "figure.constrained_layout.use": True,
}


def panels(count: int, columns: int = 3, width: float = 3.3, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, in rows of `columns`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        rows = -(-count // columns)
        across = min(count, columns)
        figure = Figure(figsize=(width * across, height * rows), layout="constrained")
        axes = list(figure.subplots(rows, across, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def styles(rows: Rows) -> dict[str, dict[str, Any]]:
    """A method's look: the same in every figure of a suite, by its place among the rows, and its own up to 64 rows."""
    looks = {}
    for i, label in enumerate(rows):
        mark = i + i // len(COLOURS)  # the ninth row has the first colour again, and another marker
        looks[label] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[mark % len(MARKERS)],
            "linestyle": DASHES[mark % len(DASHES)],
            "markersize": 4,
            "linewidth": 1.4,
        }
    return looks


def in_groups(rows: Rows) -> list[list[str]]:
    """The rows' labels, in their order, for panels that have no more lines than one can follow."""
    labels = list(rows)
    return [labels[i : i + ROWS_A_PANEL] for i in range(0, len(labels), ROWS_A_PANEL)]


def draw_lines(
    axes: Axes,
    rows: Rows,
    curve: Callable[[Sequence[StoredRun]], tuple[Array, Array] | None],
    only: Sequence[str] | None = None,
    **look: Any,
) -> bool:
    """One line a method, or for some of them; whether there was any."""
    drawn = False
    for label, style in styles(rows).items():
        points = curve(rows[label]) if only is None or label in only else None
        if points is not None and len(points[0]):
            axes.plot(*points, label=label, **{**style, **look})
            drawn = True
    return drawn


def metric_lines(
    axes: Axes, rows: Rows, task: str, metrics: Mapping[float, str], scale: float = 100, *, xlabel: str, ylabel: str
) -> bool:
    """A task's metric over a number, a line a method: the mean over seeds."""

    def curve(runs: Sequence[StoredRun]) -> tuple[Array, Array] | None:
        points = []
        for x, metric in metrics.items():
            known = [value for run in runs if (value := run.record.tasks.get(task, {}).get(metric)) is not None]
            if known:
                points.append((x, scale * float(np.mean(known))))
        return (np.array([x for x, _ in points]), np.array([y for _, y in points])) if points else None

    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return draw_lines(axes, rows, curve)


def legend(figure: Figure, axes: Sequence[Axes], *, each: bool = False) -> None:
    """One legend for all panels, below them, or below each panel its own; the figure grows by what they take."""
    width, height = figure.get_size_inches()
    if each:
        places = [(place, dict(zip(*place.get_legend_handles_labels()[::-1], strict=True))) for place in axes]
        columns = [_legend_columns(labels, place.get_position().width * width) for place, labels in places]
        for (place, labels), across in zip(places, columns, strict=True):
            place.legend(
                labels.values(), labels, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=across, fontsize=_LEGEND_FONT
            )
        lines = max(-(-len(labels) // across) for (_, labels), across in zip(places, columns, strict=True))
    else:
        handles = {label: handle for place in axes for handle, label in zip(*place.get_legend_handles_labels(), strict=True)}
        across = _legend_columns(handles, width)
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=across, fontsize=_LEGEND_FONT)
        lines = -(-len(handles) // across)
    figure.set_figheight(height + lines * _LEGEND_LINE)


_LEGEND_FONT = 8
_LEGEND_LINE = 0.18
"""Inches."""


def _legend_columns(labels: Iterable[str], width: float) -> int:
    """How many entries stand side by side in so many inches, by the longest: 0.06 inches a letter, and the line in front."""
    return max(1, int(width / (0.6 + 0.06 * max((len(label) for label in labels), default=1))))


@dataclass(frozen=True)
class Drawn:
    """One figure, with the problem and the task that it shows."""

    problem: str
    task: str
    title: str
    drawing: Figure

    @cached_property
    def svg(self) -> bytes:
        """The same bytes for the same data; drawn once, however many files show it."""
        import io

        import matplotlib as mpl

        with mpl.rc_context(SETTINGS):
            output = io.BytesIO()
            self.drawing.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
        return output.getvalue()


def make_figures(folder: Path) -> dict[str, Drawn]:
    """All figures that a results folder has the data for, by name PROBLEM-FIGURE.

    Raises:
        UserError: the folder has no records, or something in it is damaged.
    """
    import matplotlib as mpl

    made: dict[str, Drawn] = {}
    with mpl.rc_context(SETTINGS):
        for problem, rows in group_runs(folder).items():
            records = [run.record for runs in rows.values() for run in runs]
            for name, task in answered_tasks(records).items():
                answered = {label: own for label, runs in rows.items() if (own := [r for r in runs if name in r.record.tasks])}
                for title, figure in task().figures(answered).items():
                    shown = f"{problem}: {title.replace('-', ' ')}"
                    figure.suptitle(shown, fontsize=10)
                    made[f"{problem}-{title}"] = Drawn(problem, name, shown, figure)
    return made


def write_figures(figures: Mapping[str, Drawn], to: Path) -> None:
    """Write figures into a folder, as NAME.svg."""
    for name, figure in figures.items():
        write_bytes(to / f"{name}.svg", figure.svg)
