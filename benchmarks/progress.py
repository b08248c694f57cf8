"""What a user sees while a suite runs: bars with the time left on a terminal, a line a run elsewhere. All on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import track as rich_track

if TYPE_CHECKING:
    from benchmarks.plan import Run
    from benchmarks.runner import Outcome

T = TypeVar("T")


class RunProgress(Protocol):
    """What a run tells while it goes on."""

    def stepped(self, done: int, total: int, rate: float) -> None:
        """A training step is done."""

    def evaluated(self, done: int, total: int) -> None:
        """A batch is evaluated."""


class Progress:
    """Progress of a suite. Use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._all: TaskID | None = None

    def __enter__(self) -> Progress:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take them away."""
        self._bars.stop()

    def expects(self, count: int) -> None:
        """There are so many runs in all."""
        self._all = self._bars.add_task("all runs", total=count)

    def run_begins(self, run: Run) -> RunBar:
        """A run is taken up."""
        return RunBar(self._bars, run.title)

    def run_ends(self, outcome: Outcome, bar: RunBar | None = None) -> None:
        """A run is done, was found done, or has failed."""
        if bar is not None:
            bar.close()
        if self._all is not None:
            self._bars.advance(self._all)
        if outcome.failure is not None:
            self.says(f"{outcome.run.title}: failed: {outcome.failure}")
            return
        done = ["trained"] if outcome.trained else []
        done += [f"evaluated {', '.join(outcome.evaluated)}"] if outcome.evaluated else []
        what = f"{', '.join(done)} in {outcome.seconds:.0f} s" if done else "done before"
        shown = f", accuracy {100 * outcome.accuracy:.1f} %" if outcome.accuracy is not None else ""
        self.says(f"{outcome.run.title}: {what}{shown}")

    def says(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, soft_wrap=True, markup=False)


class RunBar:
    """The bar of one run."""

    def __init__(self, bars: Bars, title: str) -> None:
        self._bars = bars
        self._title = title
        self._task = bars.add_task(title, total=None)

    def stepped(self, done: int, total: int, rate: float) -> None:
        """A training step is done."""
        self._bars.update(self._task, completed=done, total=total, description=f"{self._title}: training")

    def evaluated(self, done: int, total: int) -> None:
        """A batch is evaluated."""
        self._bars.update(self._task, completed=done, total=total, description=f"{self._title}: evaluating")

    def close(self) -> None:
        """Take it away."""
        self._bars.remove_task(self._task)


def track(items: Sequence[T]) -> Iterator[T]:
    """Go through items with a bar on a terminal."""
    console = Console(stderr=True)
    yield from rich_track(items, console=console, transient=True, disable=not console.is_terminal)
