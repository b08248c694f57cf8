"""CIFAR-10 and CIFAR-100: 32 x 32 photos in 10 and 100 classes, 50,000 for training, 10,000 for the test; the official pickles.

https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bella.errors import UserError
from benchmarks import prompts
from benchmarks.datasets import ArrayDataSet
from benchmarks.downloads import Archive
from benchmarks.safe_pickle import read_pickle


class Cifar10(ArrayDataSet):
    """A fifth of the training images, each class in proportion, is held out for validation, as in the paper."""

    name = "cifar10"
    title = "CIFAR-10"
    folder = "cifar-10-batches-py"
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    customary = prompts.CIFAR
    classes = 10
    archives = (
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "cifar-10-python.tar.gz",
            "163 MB",
            "md5:c58f30108f718f92721af3b95e74349a",
        ),
    )
    label_key, name_key = "labels", "label_names"

    def read(self, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of 3,072 bytes: red, green and blue, each 32 rows of 32."""
        pixels, labels = [], []
        for file in self.files:
            if file.startswith("test" if split == "test" else ("data", "train")):
                batch = read_pickle(folder / file)
                try:
                    pixels.append(np.asarray(batch["data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
                    labels.append(np.asarray(batch[self.label_key], dtype=np.int64))
                except (KeyError, TypeError, ValueError, IndexError) as error:
                    raise UserError(f"{folder / file}: not a batch of {self.title} ({error}); fetch the data anew") from error
        return np.concatenate(pixels), np.concatenate(labels)

    def class_names(self, folder: Path) -> list[str]:
        """As the data have them, with blanks for underscores."""
        meta = read_pickle(folder / self.files[-1])
        try:
            return [str(name).replace("_", " ") for name in meta[self.name_key]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / self.files[-1]}: no class names ({error}); fetch the data anew") from error


class Cifar100(Cifar10):
    """The fine labels."""

    name = "cifar100"
    title = "CIFAR-100"
    folder = "cifar-100-python"
    files = ("train", "test", "meta")
    classes = 100
    archives = (
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "cifar-100-python.tar.gz",
            "161 MB",
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
        ),
    )
    label_key, name_key = "fine_labels", "fine_label_names"
