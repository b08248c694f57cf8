"""What a user sees while a suite runs: bars with the time left on a terminal, a line a run elsewhere. All on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import track as rich_track

if TYPE_CHECKING:
    from benchmarks.plan import Run
    from benchmarks.records import Record

T = TypeVar("T")


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
        self._now: TaskID | None = None
        self._begun = 0.0
        self._heading = ""

    def __enter__(self) -> Progress:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take them away."""
        self._bars.stop()

    def run_begins(self, run: Run, number: int, count: int) -> None:
        """A run is taken up."""
        self._begun = time.perf_counter()
        self._heading = f"{run.problem} / {run.label} / seed {run.seed}"
        if self._all is None:
            self._all = self._bars.add_task("all runs", total=count)
        self._bars.update(self._all, completed=number - 1)
        self._now = self._bars.add_task(self._heading, total=None)

    def stepped(self, done: int, total: int, rate: float) -> None:
        """A training step is done."""
        if self._now is not None:
            self._bars.update(self._now, completed=done, total=total, description=f"{self._heading}: training")

    def evaluated(self, done: int, total: int) -> None:
        """A batch is evaluated."""
        if self._now is not None:
            self._bars.update(self._now, completed=done, total=total, description=f"{self._heading}: evaluating")

    def run_ends(self, run: Run, trained: bool, evaluated: tuple[str, ...], record: Record) -> None:
        """A run is done, or was found done."""
        if self._now is not None:
            self._bars.remove_task(self._now)
        if self._all is not None:
            self._bars.advance(self._all)
        done = ["trained"] if trained else []
        done += [f"evaluated {', '.join(evaluated)}"] if evaluated else []
        what = f"{', '.join(done)} in {time.perf_counter() - self._begun:.0f} s" if done else "done before"
        accuracy = record.tasks.get("classification", {}).get("accuracy")
        shown = f", accuracy {100 * accuracy:.1f} %" if accuracy is not None else ""
        self._console.print(f"{self._heading}: {what}{shown}", soft_wrap=True)


def track(items: Sequence[T]) -> Iterator[T]:
    """Go through items with a bar on a terminal."""
    console = Console(stderr=True)
    yield from rich_track(items, console=console, transient=True, disable=not console.is_terminal)
