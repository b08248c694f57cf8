"""Image sets that stand apart from any problem: what a task sets against the test split. By name, at any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bella.errors import UserError, suggest
from benchmarks.images import SUFFIXES, ImageSplit, load_split, stratified_choice


def image_set(name: str, image_size: int, limit: int) -> ImageSplit:
    """A set by name, or the images below a folder ("folder:PATH"); targets are 0, there are no classes.

    Args:
        name: one of `SETS`, or "folder:PATH".
        image_size: S.
        limit: at most that many images, always the same ones.

    Raises:
        UserError: an unknown name, a package or folder that is missing.
    """
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")).expanduser(), image_size, limit)
    if name not in SETS:
        raise UserError(f"unknown image set {name!r}: {suggest(name, SETS)}, or folder:PATH")
    return SETS[name](image_size, limit)


def _files(files: list[Path], prefix: str, image_size: int, limit: int) -> ImageSplit:
    chosen = [files[i] for i in stratified_choice([0] * len(files), limit)]
    return load_split(chosen, [0] * len(chosen), [f"{prefix}/{file.name}" for file in chosen], image_size)


def _folder(folder: Path, image_size: int, limit: int) -> ImageSplit:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()) if folder.is_dir() else []
    if not files:
        raise UserError(f"folder:{folder}: no images there ({', '.join(sorted(SUFFIXES))})")
    return _files(files, folder.name, image_size, limit)


def easy_vqa_folder() -> Path:
    """The data folder of the package easy-vqa.

    Raises:
        UserError: it is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise UserError("easy-vqa is not installed: pip install 'bella-bench[embedded]'") from error
    return Path(easy_vqa.__file__).parent / "data"


def _easy_vqa(image_size: int, limit: int) -> ImageSplit:
    return _files(sorted((easy_vqa_folder() / "test" / "images").glob("*.png")), "easy-vqa", image_size, limit)


def _noise(image_size: int, limit: int) -> ImageSplit:
    pixels = np.random.default_rng(0).integers(0, 256, (limit, image_size, image_size, 3), dtype=np.uint8)
    ids = [f"noise/{i:05d}" for i in range(limit)]
    return ImageSplit(torch.from_numpy(pixels), torch.zeros(limit, dtype=torch.int64), ids, image_size)


SETS: dict[str, Callable[[int, int], ImageSplit]] = {"easy-vqa-images": _easy_vqa, "noise": _noise}
"""easy-vqa-images: coloured shapes (package easy-vqa, test images); noise: every pixel drawn uniformly."""
