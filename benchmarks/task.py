"""What a task is: a function from a posterior's stored predictions to metrics, and the columns it puts into tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from benchmarks.options import Options

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from bella.particles import Particles
    from benchmarks.figures import Rows
    from benchmarks.problem import Data, Split


@dataclass(frozen=True)
class Predictions:
    """Stored predictions on one split: logits (n, N, C), targets (N,), ids."""

    logits: Tensor
    targets: Tensor
    ids: list[str]


class Posterior(Protocol):
    """What a task may ask: stored predictions, and where those do not suffice the particles and the data themselves."""

    average: str
    """What is averaged over particles, "probabilities" or "logits"."""

    def predictions(self, split: str, examples: Callable[[], Split] | None = None) -> Predictions:
        """Predictions on "validation", "test" or a further set of the problem, or on examples that the task makes.

        Computed once, then stored under the name; `examples` is called only where they must be computed.
        """
        ...

    def distances(self) -> dict[str, Tensor]:
        """Distances (n, n) between particles as trained, in "weights" and in "products"."""
        ...

    def particles(self) -> Particles:
        """The trained particles."""
        ...

    def data(self) -> Data:
        """The problem's data."""
        ...


@dataclass(frozen=True)
class Column:
    """A column of a task's table.

    Attributes:
        metric: its name in the record.
        title: the heading, with the unit.
        better: which end is best and set in bold; None: neither.
        unit: "number"; or a readable form of a "count" (3.4 M), "bytes" (13.5 MB) or "seconds".
        scale: what values are multiplied by (100 for per cent).
        digits: after the point.
    """

    metric: str
    title: str
    better: Literal["higher", "lower"] | None = None
    scale: float = 1.0
    digits: int = 3
    unit: Literal["number", "count", "bytes", "seconds"] = "number"


@dataclass(frozen=True)
class Value:
    """A column's values for one method: mean and sample standard deviation over the seeds that define it, or an interval."""

    mean: float | None
    std: float | None
    count: int
    seeds: int
    interval: tuple[float, float] | None = None


class Task(ABC):
    """One task. Class attributes: `options`; `revision`, raised when its numbers change; `tables`, title -> columns; `caption`."""

    options: ClassVar[type[Options]] = Options
    revision: ClassVar[int] = 1
    tables: ClassVar[Mapping[str, tuple[Column, ...]]]
    caption: ClassVar[str]

    @abstractmethod
    def evaluate(self, posterior: Posterior, options: Any) -> dict[str, float | None]:
        """Metrics by name; None where one is undefined on its input."""

    def figures(self, rows: Rows) -> dict[str, Figure]:
        """Figures by name, from the stored runs of one problem that answer the task; without torch."""
        return {}
