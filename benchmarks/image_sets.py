"""Image sets that stand apart from any problem: what a task sets against the test split. By name, at any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bella.errors import UserError, suggest
from benchmarks.images import SUFFIXES, ImageSplit, load_split, stratified_choice
from benchmarks.registries import PROBLEMS


def image_set(name: str, image_size: int, limit: int) -> ImageSplit:
    """A set by name, the images below a folder, or another problem's test split; targets mean nothing here.

    Args:
        name: one of `SETS`, "folder:PATH", or "problem:NAME" (in its default data folder).
        image_size: S.
        limit: at most that many images, always the same ones.

    Raises:
        UserError: an unknown name; a package, a folder or data that are missing.
    """
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")).expanduser(), image_size, limit)
    if name.startswith("problem:"):
        return _problem(name.removeprefix("problem:"), image_size, limit)
    if name not in SETS:
        raise UserError(f"unknown image set {name!r}: {suggest(name, SETS)}, or folder:PATH, or problem:NAME")
    return SETS[name](image_size, limit)


def _files(files: list[Path], prefix: str, image_size: int, limit: int) -> ImageSplit:
    chosen = [files[i] for i in stratified_choice([0] * len(files), limit)]
    return load_split(chosen, [0] * len(chosen), [f"{prefix}/{file.name}" for file in chosen], image_size)


def _folder(folder: Path, image_size: int, limit: int) -> ImageSplit:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()) if folder.is_dir() else []
    if not files:
        raise UserError(f"folder:{folder}: no images there ({', '.join(sorted(SUFFIXES))})")
    return _files(files, folder.name, image_size, limit)


def _problem(name: str, image_size: int, limit: int) -> ImageSplit:
    problem = PROBLEMS.resolve(name)()
    wanted = {"image_size": image_size, "test_limit": limit}
    options = problem.options(**{key: value for key, value in wanted.items() if key in problem.options.model_fields})
    if (missing := problem.missing(options)) is not None:
        raise UserError(f"image set problem:{name}: {missing}")
    split = problem.test_split(options)
    if not isinstance(split, ImageSplit) or split.image_size != image_size:
        raise UserError(f"image set problem:{name}: its examples are no images of {image_size} px; choose another problem")
    members = torch.tensor(stratified_choice(split.targets.tolist(), limit))
    if len(members) == len(split):
        return split
    return ImageSplit(split.pixels(members), split.targets[members], [split.ids[i] for i in members.tolist()], image_size)


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
