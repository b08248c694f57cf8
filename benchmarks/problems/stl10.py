"""STL-10: 96 x 96 photos in 10 classes, 5,000 for training, 8,000 for the test; the official binary files.

https://cs.stanford.edu/~acoates/stl10/
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bella.errors import UserError
from benchmarks import prompts
from benchmarks.datasets import ArrayDataSet
from benchmarks.downloads import Archive

SIDE = 96


class Stl10(ArrayDataSet):
    """The labelled images only; a fifth of those for training is held out for validation."""

    name = "stl10"
    title = "STL-10"
    folder = "stl10_binary"
    files = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")
    customary = prompts.STL10
    classes = 10
    archives = (
        Archive(
            "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            "stl10_binary.tar.gz",
            "2.6 GB",
            "md5:91f7769df0f17e558f3565bffb0c7dfb",
        ),
    )

    def read(self, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Red, green and blue of an image, each column by column; labels from 1."""
        values = np.fromfile(folder / f"{split}_X.bin", dtype=np.uint8)
        if values.size % (3 * SIDE * SIDE):
            raise UserError(f"{folder / split}_X.bin: {values.size} bytes are no whole number of images: fetch the data anew")
        pixels = values.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)
        return pixels, np.fromfile(folder / f"{split}_y.bin", dtype=np.uint8).astype(np.int64) - 1

    def class_names(self, folder: Path) -> list[str]:
        """A line each."""
        return (folder / "class_names.txt").read_text().split()
