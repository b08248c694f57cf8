"""Any folder of class folders: `train/CLASS/*.jpg`, `test/CLASS/*.jpg`, and `val/CLASS/*.jpg` where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bella.errors import UserError, suggest
from benchmarks.images import SUFFIXES, ImageSplit, fingerprint, load_split, stratified_choice
from benchmarks.options import Options
from benchmarks.problem import Data, Problem

TRAINING, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")

Files = list[tuple[Path, int]]


class ImageFolderOptions(Options):
    """data: the folder; the limits choose that many images, each class in proportion, always the same ones.

    validation_fraction of the training folder is held out for validation where it has no folder of its own.
    unseen: classes that are not learned; their test images are a near out-of-distribution set.
    description says in captions what the images are.
    """

    data: Path | None = None
    image_size: int = Field(default=224, ge=8)
    train_limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    unseen: tuple[str, ...] = ()
    description: str | None = None


class ImageFolder(Problem[ImageFolderOptions]):
    """Classes are the folder names in alphabetical order; validation comes from `val`, or is held out of `train`."""

    options = ImageFolderOptions
    backbone = "packaged:efficientnet_lite0"
    settings: ClassVar[dict[str, Any]] = {"epochs": 5, "batch_size": 32}
    tested: ClassVar[str] = "test"

    def missing(self, options: ImageFolderOptions) -> str | None:
        """The folder must be named and have train and test in it."""
        if options.data is None:
            return "imagefolder needs a folder of class folders: --set data=FOLDER (with train/CLASS/*.jpg and test/CLASS/*.jpg)"
        root = options.data.expanduser()
        if not root.is_dir():
            return f"no such folder: {root} (setting data: a folder with train/CLASS/*.jpg and test/CLASS/*.jpg)"
        for names in (TRAINING, (*TEST, *VALIDATION)):
            if _find(root, names) is None:
                return f"{root} has no {names[0]} folder (needed: train/CLASS/*.jpg and test/CLASS/*.jpg)"
        return None

    def fingerprint(self, options: ImageFolderOptions) -> str:
        """Names and sizes of all image files that are learned from or tested on."""
        splits = self._splits(options)
        root = self._root(options)
        return fingerprint([f"{file.relative_to(root)} {file.stat().st_size}" for files in splits.values() for file, _ in files])

    def load(self, options: ImageFolderOptions) -> Data:
        """Read the images."""
        names = self._class_names(options)
        root = self._root(options)
        training, validation, test = self._chosen(options)

        def load(files: Files) -> ImageSplit:
            ids = [str(file.relative_to(root)) for file, _ in files]
            return load_split([file for file, _ in files], [c for _, c in files], ids, options.image_size)

        about = options.description or f"images of {root.resolve().name}"
        if options.unseen:
            about += f", without {', '.join(options.unseen)}"
        return Data(
            training=load(training),
            validation=load(validation),
            test=load(test),
            class_names=names,
            image_size=options.image_size,
            description=f"{about}, {len(training)} training and {len(test)} {self.tested} images at {options.image_size} px",
            further={"unseen-classes": load(limited(self._unseen(options), options.test_limit))} if options.unseen else {},
            near=("unseen-classes",) if options.unseen else (),
        )

    def _chosen(self, options: ImageFolderOptions) -> tuple[Files, Files, Files]:
        """The images that are learned from, validated on and tested on."""
        splits = self._splits(options)
        training = splits["train"]
        validation = splits.get("val")
        if validation is None:
            share = options.validation_fraction
            count = round(share * len(training))
            if options.train_limit is not None:  # as many as go with that many training images
                count = min(count, round(options.train_limit * share / (1 - share)))
            kept = {c: i for i, (_, c) in enumerate(training)}  # one of each class stays in training, however small the class
            pool = [i for i, (_, c) in enumerate(training) if kept[c] != i]
            chosen = {pool[i] for i in stratified_choice([training[i][1] for i in pool], count)}
            validation = [training[i] for i in sorted(chosen)]
            training = [entry for i, entry in enumerate(training) if i not in chosen]
        training = limited(training, options.train_limit)
        if not training or not validation:
            share = options.validation_fraction
            raise UserError(f"{self._root(options)}: too few training images to hold {share:.0%} out for validation")
        return training, validation, limited(splits["test"], options.test_limit)

    def _root(self, options: ImageFolderOptions) -> Path:
        if (problem := self.missing(options)) is not None:
            raise UserError(problem)
        assert options.data is not None
        return options.data.expanduser()

    def _class_names(self, options: ImageFolderOptions) -> list[str]:
        """The classes that are learned."""
        training = _find(self._root(options), TRAINING)
        assert training is not None
        names = sorted(folder.name for folder in training.iterdir() if folder.is_dir() and not folder.name.startswith("."))
        for name in options.unseen:
            if name not in names:
                raise UserError(f"unseen: {training} has no class {name!r}: {suggest(name, names)}")
        names = [name for name in names if name not in options.unseen]
        if len(names) < 2:
            raise UserError(f"{training} has {len(names)} class folders: at least 2 are needed")
        return names

    def _splits(self, options: ImageFolderOptions) -> dict[str, Files]:
        """Files and classes of train, test and, where both exist, val; a lone val folder is the test split."""
        root = self._root(options)
        names = self._class_names(options)
        folders = {"train": _find(root, TRAINING), "val": _find(root, VALIDATION), "test": _find(root, TEST)}
        if folders["test"] is None:
            folders["test"], folders["val"] = folders["val"], None
        return {split: list_classes(folder, names, options.unseen) for split, folder in folders.items() if folder is not None}

    def _unseen(self, options: ImageFolderOptions) -> Files:
        """Test images of the classes that are not learned; their labels mean nothing."""
        folder = _find(self._root(options), (*TEST, *VALIDATION))
        assert folder is not None
        return list_classes(folder, sorted(options.unseen), self._class_names(options))


class DevelopmentFolder(ImageFolder):
    """As image folders, but tested on training images that are neither learned from nor validated on.

    Settings are chosen by it, so that no test image has a part in the choice.
    """

    tested = "development"

    def _chosen(self, options: ImageFolderOptions) -> tuple[Files, Files, Files]:
        training, validation, _ = super()._chosen(options)
        used = {file for file, _ in (*training, *validation)}
        unused = [entry for entry in self._splits(options)["train"] if entry[0] not in used]
        if not unused:
            raise UserError(
                f"{self._root(options)}: all training images are learned from, none is left to test on: set train_limit"
            )
        return training, validation, limited(unused, options.test_limit)


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def list_classes(folder: Path, names: Sequence[str], left_out: Sequence[str] = ()) -> Files:
    """All images of one split, class by class, by name; folders that are left out are passed over."""
    found = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".") and f.name not in left_out)
    files: Files = []
    for class_folder in found:
        if class_folder.name not in names:
            raise UserError(f"{class_folder}: no such class in the training folder: {suggest(class_folder.name, names)}")
        images = sorted(file for file in class_folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not images:
            raise UserError(
                f"{class_folder}: a class without images ({', '.join(sorted(SUFFIXES))}): add some, or remove the folder"
            )
        files += [(image, names.index(class_folder.name)) for image in images]
    if not files:
        raise UserError(f"{folder}: no class folders with images")
    return files


def limited(files: Files, limit: int | None) -> Files:
    """At most so many of the files, each class in proportion, always the same ones."""
    if limit is None:
        return files
    return [files[i] for i in stratified_choice([c for _, c in files], limit)]
