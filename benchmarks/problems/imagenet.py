"""ImageNet (ILSVRC 2012): 1000 classes, 1.28 million training images; its 50,000 validation images are the test split.

Class folders as usual: train/n01440764/*.JPEG, val/n01440764/*.JPEG. Further sets for the task `domain`: ImageNet-V2
(https://github.com/modestyachts/ImageNetV2), ImageNet-R (https://github.com/hendrycks/imagenet-r) and ImageNet-A
(https://github.com/hendrycks/natural-adv-examples).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from pydantic import Field

from bella.errors import UserError
from benchmarks import prompts
from benchmarks.datasets import DOMAIN, DataSet, Files, HeldOutOptions, chosen, file_split, split_off
from benchmarks.images import SUFFIXES, ImageSplit, fingerprint
from benchmarks.problem import Data


class ImageNetOptions(HeldOutOptions):
    """v2: the folder of ImageNet-V2 (class folders 0 ... 999); r, a: those of ImageNet-R and ImageNet-A (some of the synsets)."""

    # Folders of test sets say nothing about the training: they stay out of a run's configuration, as `data` does.
    v2: Path | None = Field(default=None, exclude=True)
    r: Path | None = Field(default=None, exclude=True)
    a: Path | None = Field(default=None, exclude=True)
    validation_fraction: float = Field(default=0.02, gt=0, lt=1)


class ImageNet(DataSet[ImageNetOptions]):
    """Classes are the synset folders of train, in sorted order: that is the official order where all 1000 are there."""

    options = ImageNetOptions
    name = "imagenet"
    source = "get train and val from https://image-net.org/download.php (an account is needed) and sort val into synset folders"

    def missing(self, options: ImageNetOptions) -> str | None:
        """Synset folders below train and val, and every further set that is named."""
        for split in ("train", "val"):
            if not _folders(self.root(options) / split):
                return self.lacking(f"{split}/SYNSET folders", options)
        for name, folder in self._further(options).items():
            if not _folders(folder.expanduser()):
                return f"imagenet: no class folders in {folder}: name ImageNet-{name.upper()}'s folder: --set {name}=FOLDER"
        return None

    def class_count(self, options: ImageNetOptions) -> int:
        """That of the folders, or the published one."""
        return len(_folders(self.root(options) / "train")) or 1000

    def fingerprint(self, options: ImageNetOptions) -> str:
        """Names of all images, and the size of the first one of each class."""
        root = self.here(options)
        lines = []
        for folder in (root / "train", root / "val", *self._further(options).values()):
            for own in _folders(folder.expanduser()):
                names = _images(folder.expanduser() / own)
                size = (folder.expanduser() / own / names[0]).stat().st_size if names else 0
                lines.append(f"{folder.name}/{own} {size} {' '.join(names)}")
        return fingerprint(lines)

    def load(self, options: ImageNetOptions) -> Data:
        """List the images, and decode them where they fit in memory."""
        root = self.here(options)
        synsets = _folders(root / "train")
        if len(synsets) < 2:
            raise UserError(f"{root}/train has {len(synsets)} class folders: at least 2 are needed")
        training, validation = split_off(self._list(root / "train", synsets), options, root / "train")
        size = options.image_size
        return Data(
            training=file_split(training, root, size),
            validation=file_split(validation, root, size),
            test=self.test_split(options),
            class_names=_class_names(synsets),
            image_size=size,
            description=f"ImageNet, {len(synsets)} classes, {len(training)} training images at {size} px, test: its val",
            templates=options.templates or prompts.imagenet(),
            further={
                f"{DOMAIN}imagenet-{name}": self._load_further(folder.expanduser(), name, synsets, options)
                for name, folder in self._further(options).items()
            },
            class_folders=tuple(synsets),
        )

    def test_split(self, options: ImageNetOptions) -> ImageSplit:
        """The official validation images."""
        root = self.here(options)
        files = self._list(root / "val", _folders(root / "train"))
        return file_split(chosen(files, options.test_limit), root, options.image_size)

    def _further(self, options: ImageNetOptions) -> dict[str, Path]:
        named = {"v2": options.v2, "r": options.r, "a": options.a}
        return {name: folder for name, folder in named.items() if folder is not None}

    def _load_further(self, folder: Path, name: str, synsets: list[str], options: ImageNetOptions) -> ImageSplit:
        """A further test set; what it has of classes that are not learned is left out, and only its classes are asked for."""
        folders = _folders(folder)
        if name == "v2":  # numbered in the official order
            official = official_synsets()
            strange = next((f for f in folders if not f.isdigit() or int(f) >= len(official)), None)
            if strange is not None:
                raise UserError(f"{folder / strange}: ImageNet-V2's class folders are called 0 to 999")
            found = {f: official[int(f)] for f in folders}
        else:
            found = {f: f for f in folders}
        learned = {f: synsets.index(synset) for f, synset in found.items() if synset in set(synsets)}
        if not learned:
            raise UserError(f"{folder}: none of its {len(folders)} class folders is a class of the training images")
        files = [(folder / f / image, label) for f, label in learned.items() for image in _images(folder / f)]
        split = file_split(chosen(files, options.test_limit), folder, options.image_size)
        split.classes = None if len(learned) == len(synsets) else tuple(sorted(learned.values()))
        return split

    def _list(self, folder: Path, synsets: list[str]) -> Files:
        files: Files = []
        for own in _folders(folder):
            if own not in synsets:
                raise UserError(f"{folder / own}: train has no such class; remove the folder, or add its training images")
            images = _images(folder / own)
            if not images:
                raise UserError(f"{folder / own}: a class without images; add some, or remove the folder")
            files += [(folder / own / image, synsets.index(own)) for image in images]
        return files


def _folders(folder: Path) -> list[str]:
    """Names of class folders, sorted; none where there is no such folder."""
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")) if folder.is_dir() else []


def _images(folder: Path) -> list[str]:
    """Names of images, sorted. No file is asked for anything: there are 1.28 million."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if os.path.splitext(entry.name)[1].lower() in SUFFIXES)


@functools.cache
def official_synsets() -> list[str]:
    """The 1000 synsets in the official order, which is sorted; timm keeps them."""
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def _class_names(synsets: list[str]) -> list[str]:
    """CLIP's names of the classes (open_clip keeps them); a synset that is none of the 1000 keeps its own."""
    from open_clip import IMAGENET_CLASSNAMES

    known = dict(zip(official_synsets(), IMAGENET_CLASSNAMES, strict=True))
    return [known.get(synset, synset) for synset in synsets]
