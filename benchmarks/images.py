"""Splits of images: decoded and resized once, kept as uint8, turned to floats on the device."""

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
"""Decoded images up to this size are kept; beyond it they are decoded for each batch."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass
class ImageSplit:
    """One split: images, class indices, and a name for every example.

    Attributes:
        images: (N, S, S, 3) uint8, or the files to decode.
        targets: (N,) int64.
        ids: N names, stable over runs.
        image_size: S.
    """

    images: Tensor | Sequence[Path]
    targets: Tensor
    ids: list[str]
    image_size: int

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def inputs(self, indices: Tensor, device: torch.device) -> Tensor:
        """Images (b, 3, S, S) in [0, 1], float32, channels-last, on a device."""
        if isinstance(self.images, Tensor):
            pixels = self.images[indices]
        else:
            pixels = decode([self.images[i] for i in indices.tolist()], self.image_size)
        return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


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


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any image; 16-bit grey is scaled to 8 bits, which Pillow would clip to white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def load_split(files: Sequence[Path], targets: Sequence[int], ids: Sequence[str], image_size: int) -> ImageSplit:
    """A split from files, decoded at once where they fit in memory."""
    fits = len(files) * image_size * image_size * 3 <= IN_MEMORY_BYTES
    return ImageSplit(decode(files, image_size) if fits else list(files), torch.tensor(targets), list(ids), image_size)


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
    rest = [i for _, _, i in order if i not in set(first)]
    return sorted(first + rest[: count - len(first)])


def fingerprint(lines: Sequence[str]) -> str:
    """16 hexadecimal digits that identify a data set by a list of lines about its content."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
