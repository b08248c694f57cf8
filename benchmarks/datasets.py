"""What the published data sets have in common: their options, where they lie, and those that come as arrays of pixels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import Field, field_validator

from bella.errors import UserError
from benchmarks.backbones import file_checksum
from benchmarks.downloads import data_folder
from benchmarks.images import ImageSplit, array_split, fingerprint, hold_out, load_split, stratified_choice
from benchmarks.options import Options
from benchmarks.problem import Data, Problem

Files = list[tuple[Path, int]]

DOMAIN = "domain-"
"""Further sets of the task `domain` are called domain-NAME."""


class DataSetOptions(Options):
    """data: the folder (left out: $BELLA_DATA/NAME, or ~/.cache/bella/data/NAME); image_size: what images are resized to.

    train_limit, test_limit: at most that many images, each class in proportion, always the same ones. templates: what a
    zero-shot head says of a class, {} for its name (left out: the data set's customary ones).
    """

    data: Path | None = None
    image_size: int = Field(default=224, ge=8)
    train_limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)
    templates: tuple[str, ...] | None = Field(default=None, min_length=1)

    @field_validator("templates")
    @classmethod
    def _name_the_class(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for template in templates or ():
            if "{}" not in template:
                raise ValueError(f"{template!r} has no {{}} for the name of the class")
        return templates


class HeldOutOptions(DataSetOptions):
    """validation_fraction of the training images is held out for validation, each class in proportion."""

    validation_fraction: float = Field(default=0.2, gt=0, lt=1)


OptionsT = TypeVar("OptionsT", bound=DataSetOptions)


class DataSet(Problem[OptionsT]):
    """A published data set. Class attributes: `name`, the problem's; `source`, how to get the data where nothing fetches them."""

    backbone: ClassVar[str | None] = "open_clip:ViT-B-32/laion2b_s34b_b79k"
    settings: ClassVar[dict[str, Any]] = {"epochs": 7, "batch_size": 128}
    name: ClassVar[str]
    source: ClassVar[str] = ""

    def root(self, options: OptionsT) -> Path:
        """The folder with the data."""
        return data_folder(self.name) if options.data is None else options.data.expanduser()

    def here(self, options: OptionsT) -> Path:
        """The folder with the data.

        Raises:
            UserError: they are missing.
        """
        if (problem := self.missing(options)) is not None:
            raise UserError(problem)
        return self.root(options)

    def lacking(self, what: str, options: OptionsT) -> str:
        """One line: what is missing, where, and how to get it."""
        sizes = " + ".join(dict.fromkeys(archive.size for archive in self.archives if archive.size))
        to = "" if options.data is None else f" --data {options.data}"
        get = f"run `bella download {self.name}{to}` ({sizes})" if self.archives else self.source
        return f"{self.name}: no {what} in {self.root(options)}: {get}, or name the folder: --set data=FOLDER"


class ArrayDataSet(DataSet[HeldOutOptions]):
    """Pixels in a few files. Class attributes: `title`, for captions; `folder`, its own inside the data folder; `files`, there;
    `customary`, its templates; `classes`, how many."""

    options = HeldOutOptions
    title: ClassVar[str]
    folder: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]]
    customary: ClassVar[tuple[str, ...]]
    classes: ClassVar[int]

    @abstractmethod
    def read(self, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, H, H, 3) uint8 and labels (N,) of "train" or "test"."""

    @abstractmethod
    def class_names(self, folder: Path) -> list[str]:
        """In the order of the labels."""

    def place(self, options: HeldOutOptions) -> Path:
        """Where the files lie: in the data set's own folder, or in the folder named itself."""
        root = self.root(options)
        return root if (root / self.files[0]).is_file() else root / self.folder

    def missing(self, options: HeldOutOptions) -> str | None:
        """Every file must be there."""
        place = self.place(options)
        absent = next((file for file in self.files if not (place / file).is_file()), None)
        return None if absent is None else self.lacking(str(Path(self.folder) / absent), options)

    def class_count(self, options: HeldOutOptions) -> int:
        """The published number."""
        return self.classes

    def fingerprint(self, options: HeldOutOptions) -> str:
        """Checksums of all files: a few hundred megabytes, under a second."""
        self.here(options)
        place = self.place(options)
        return fingerprint([f"{file} {file_checksum(place / file)}" for file in self.files])

    def load(self, options: HeldOutOptions) -> Data:
        """Read the pixels, and hold a part of the training images out for validation."""
        self.here(options)
        place = self.place(options)
        names = self.class_names(place)
        pixels, labels = self._checked(place, "train", len(names))
        training, validation = hold_out(labels, options.validation_fraction, options.train_limit)
        if not training or not validation:
            raise UserError(
                f"{self.name}: of {len(labels)} training images none is left to hold {options.validation_fraction:.0%} out "
                "for validation: raise train_limit or validation_fraction"
            )
        test = self.test_split(options)
        return Data(
            training=self._split("train", pixels, labels, training, options),
            validation=self._split("train", pixels, labels, validation, options),
            test=test,
            class_names=names,
            image_size=options.image_size,
            description=f"{self.title}, {len(training)} training and {len(test)} test images, {pixels.shape[1]} px at "
            f"{options.image_size} px",
            templates=options.templates or self.customary,
        )

    def test_split(self, options: HeldOutOptions) -> ImageSplit:
        """The test images, read alone."""
        self.here(options)
        place = self.place(options)
        pixels, labels = self._checked(place, "test", len(self.class_names(place)))
        count = len(labels) if options.test_limit is None else options.test_limit
        return self._split("test", pixels, labels, stratified_choice(labels, count), options)

    def _checked(self, place: Path, split: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = self.read(place, split)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.shape[1] != pixels.shape[2]:
            raise UserError(f"{place}: {split} images are {pixels.dtype} of shape {pixels.shape}: damaged; fetch them again")
        if len(pixels) != len(labels) or not len(labels) or labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"{place}: {len(pixels)} {split} images, {len(labels)} labels of {classes} classes do not fit together: damaged; "
                "fetch them again"
            )
        return pixels, labels

    def _split(
        self, split: str, pixels: np.ndarray, labels: np.ndarray, members: Sequence[int], options: HeldOutOptions
    ) -> ImageSplit:
        ids = [f"{self.name}/{split}/{i:05d}" for i in members]
        chosen = np.asarray(members)
        return array_split(pixels[chosen], labels[chosen], ids, options.image_size)


def file_split(files: Files, root: Path, image_size: int) -> ImageSplit:
    """A split of image files, named by their paths below a folder."""
    ids = [file.relative_to(root).as_posix() for file, _ in files]
    return load_split([file for file, _ in files], [c for _, c in files], ids, image_size)


def chosen(files: Files, limit: int | None) -> Files:
    """At most so many of the files, each class in proportion, always the same ones."""
    return files if limit is None else [files[i] for i in stratified_choice([c for _, c in files], limit)]


def split_off(files: Files, options: HeldOutOptions, where: Path) -> tuple[Files, Files]:
    """Training and validation files out of training files.

    Raises:
        UserError: there are too few.
    """
    training, validation = hold_out([c for _, c in files], options.validation_fraction, options.train_limit)
    if not training or not validation:
        raise UserError(f"{where}: {len(files)} training images are too few to hold {options.validation_fraction:.0%} out")
    return [files[i] for i in training], [files[i] for i in validation]
