"""What a problem is: data splits, backbone, head and recipe; one file a data set family under `problems/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from bella.data import Examples
from benchmarks.downloads import Archive
from benchmarks.options import Options


class Split(Examples, Protocol):
    """Examples with a name each."""

    ids: list[str]


@dataclass(frozen=True)
class Data:
    """What a problem loads.

    Attributes:
        training: what is learned from.
        validation: what chooses the best epoch and the temperature.
        test: what is reported.
        class_names: in the order of the class indices.
        image_size: S.
        description: one line for captions, honest about where the data come from.
        templates: what a zero-shot head says of a class, with {} for its name; embeddings are averaged over them.
        further: other sets that tasks ask for by name (unseen classes, shifted copies).
        near: the further sets that are near out-of-distribution: of the same kind, other classes.
        class_folders: what class folders of these data are called, where they have other names than the classes.
    """

    training: Split
    validation: Split
    test: Split
    class_names: list[str]
    image_size: int
    description: str
    templates: tuple[str, ...] = ("a photo of a {}.",)
    further: Mapping[str, Split] = field(default_factory=dict)
    near: tuple[str, ...] = ()
    class_folders: tuple[str, ...] | None = None


OptionsT = TypeVar("OptionsT", bound=Options)


class Problem(ABC, Generic[OptionsT]):
    """One problem.

    Class attributes: `options`, the model of its data options; `backbone`, the default theta_0; `settings`, defaults of
    any other setting (epochs, learning_rate, ...) that suit it; `archives`, what `bella download` fetches and unpacks into
    the folder that the option `data` names, where the data may be had so.
    """

    options: ClassVar[type[Options]]
    backbone: ClassVar[str | None] = None
    settings: ClassVar[Mapping[str, Any]] = {}
    archives: ClassVar[Sequence[Archive]] = ()

    @abstractmethod
    def missing(self, options: OptionsT) -> str | None:
        """None where the data are at hand; else one line that says what is missing and how to get it."""

    def class_count(self, options: OptionsT) -> int | None:
        """How many classes there are, where that is known without reading the data."""
        return None

    @abstractmethod
    def fingerprint(self, options: OptionsT) -> str:
        """What identifies the data in a run's hash, whatever folder they lie in."""

    @abstractmethod
    def load(self, options: OptionsT) -> Data:
        """Read the data.

        Raises:
            UserError: they are missing or damaged.
        """

    def test_split(self, options: OptionsT) -> Split:
        """The test split alone, for those who need nothing else."""
        return self.load(options).test
