"""SVHN, cropped digits: 32 x 32 photos of house numbers, 73,257 for training, 26,032 for the test; the official .mat files.

http://ufldl.stanford.edu/housenumbers/
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bella.errors import UserError
from benchmarks import prompts
from benchmarks.datasets import ArrayDataSet
from benchmarks.downloads import Archive


class Svhn(ArrayDataSet):
    """The file `extra` is left out; a fifth of the training images is held out for validation."""

    name = "svhn"
    title = "SVHN"
    files = ("train_32x32.mat", "test_32x32.mat")
    customary = prompts.SVHN
    classes = 10
    archives = (
        Archive(
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "train_32x32.mat",
            "182 MB",
            "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
        ),
        Archive(
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "test_32x32.mat",
            "64 MB",
            "md5:eb5a983be6a315427106f1b164d9cef3",
        ),
    )

    def read(self, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        """X (32, 32, 3, N); y has 10 where the digit is 0."""
        from scipy.io import loadmat

        file = folder / f"{split}_32x32.mat"
        try:
            found = loadmat(file, variable_names=["X", "y"])
            pixels, labels = found["X"].transpose(3, 0, 1, 2), found["y"].reshape(-1).astype(np.int64)
        except Exception as error:  # scipy raises nearly anything on a damaged file
            raise UserError(f"{file}: not the official file ({error}); delete it and fetch the data anew") from error
        return pixels, labels % 10

    def class_names(self, folder: Path) -> list[str]:
        """The digits."""
        return [str(digit) for digit in range(10)]
