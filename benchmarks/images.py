"""Splits of images: decoded and resized once where they fit in memory, kept as uint8, turned to floats on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from bella.errors import UserError

IN_MEMORY_BYTES = 4 * 2**30
"""A split up to this size is kept as the network sees it; beyond it images are decoded, or resized, for each batch."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass
class ImageSplit:
    """One split: images, class indices, and a name for every example.

    Attributes:
        images: (N, H, W, 3) uint8, or the files to decode; where H and W are not S, every batch is resized.
        targets: (N,) int64.
        ids: N names, stable over runs.
        image_size: S.
        classes: the only classes its images can have, where those are not all (ImageNet-R); None: all of them.
    """

    images: Tensor | Sequence[Path]
    targets: Tensor
    ids: list[str]
    image_size: int
    classes: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def inputs(self, indices: Tensor, device: torch.device) -> Tensor:
        """Images (b, 3, S, S) in [0, 1], float32, channels-last, on a device."""
        return self.pixels(indices).to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)

    def pixels(self, indices: Tensor) -> Tensor:
        """Images (b, S, S, 3) uint8."""
        if isinstance(self.images, Tensor):
            return resize(self.images[indices], self.image_size)
        return decode([self.images[i] for i in indices.tolist()], self.image_size)


def decode(files: Sequence[Path], image_size: int) -> Tensor:
    """Read image files as (N, S, S, 3) uint8: RGB, scaled (bicubic) and cropped at the centre to fill the square.

    Raises:
        UserError: a file is no readable image.
    """
    pixels = torch.empty(len(files), image_size, image_size, 3, dtype=torch.uint8)
    array = pixels.numpy()

    def read(index: int) -> None:
        try:
            with Image.open(files[index]) as image:
                upright = ImageOps.exif_transpose(image)
                fitted = ImageOps.fit(_to_rgb(upright), (image_size, image_size), Image.Resampling.BICUBIC)
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{files[index]}: not a readable image ({error}); replace it, or remove it") from error
        array[index] = np.asarray(fitted)

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(files))))
    return pixels


def resize(pixels: Tensor, image_size: int) -> Tensor:
    """Square images (N, H, H, 3) uint8 as (N, S, S, 3), bicubic; the same tensor where S is H."""
    if pixels.shape[1:3] == (image_size, image_size):
        return pixels
    resized = torch.empty(len(pixels), image_size, image_size, 3, dtype=torch.uint8)
    source, target = pixels.numpy(), resized.numpy()

    def scale(index: int) -> None:
        image = Image.fromarray(source[index])
        target[index] = np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor() as pool:
        list(pool.map(scale, range(len(pixels))))
    return resized


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any image; 16-bit grey is scaled to 8 bits, which Pillow would clip to white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def load_split(files: Sequence[Path], targets: Sequence[int], ids: Sequence[str], image_size: int) -> ImageSplit:
    """A split from files, decoded at once where they fit in memory."""
    fits = len(files) * image_size * image_size * 3 <= IN_MEMORY_BYTES
    return ImageSplit(decode(files, image_size) if fits else list(files), torch.tensor(targets), list(ids), image_size)


def array_split(pixels: np.ndarray, targets: np.ndarray, ids: Sequence[str], image_size: int) -> ImageSplit:
    """A split from square images (N, H, H, 3) uint8, resized at once where that fits in memory."""
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    if len(ids) * image_size * image_size * 3 <= IN_MEMORY_BYTES:
        images = resize(images, image_size)
    return ImageSplit(images, torch.from_numpy(targets.astype(np.int64)), list(ids), image_size)


def hold_out(targets: Sequence[int] | np.ndarray, share: float, limit: int | None = None) -> tuple[list[int], list[int]]:
    """Indices of training and of validation examples, each class in proportion, always the same ones, in ascending order.

    Args:
        targets: of all training examples.
        share: of them that is held out for validation; of every class at least one stays in training.
        limit: at most that many training examples, and as many validation examples as go with them.
    """
    labels = np.asarray(targets)
    count = round(share * len(labels))
    if limit is not None:
        count = min(count, round(limit * share / (1 - share)))
    _, kept = np.unique(labels, return_index=True)
    pool = np.setdiff1d(np.arange(len(labels)), kept)
    validation = pool[stratified_choice(labels[pool], count)]
    training = np.setdiff1d(np.arange(len(labels)), validation)
    if limit is not None:
        training = training[stratified_choice(labels[training], limit)]
    return training.tolist(), validation.tolist()


def stratified_choice(targets: Sequence[int] | np.ndarray, count: int, seed: int = 0) -> list[int]:
    """Indices of `count` examples with each class in proportion, drawn from a fixed seed; in ascending order.

    Every class keeps at least one example where `count` allows it. All examples where there are no more than `count`.
    """
    labels = np.asarray(targets)
    if count >= len(labels):
        return list(range(len(labels)))
    generator = np.random.default_rng(seed)
    by_class = [generator.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    # Take members in the order of their rank within their class, as a share of the class: proportions hold at any count.
    order = sorted(((rank + 0.5) / len(members), c, int(i)) for c, members in enumerate(by_class) for rank, i in enumerate(members))
    first = [int(members[0]) for members in by_class][:count]
    taken = set(first)
    rest = [i for _, _, i in order if i not in taken]
    return sorted(first + rest[: count - len(first)])


def fingerprint(lines: Sequence[str]) -> str:
    """16 hexadecimal digits that identify a data set by a list of lines about its content."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
