"""The package wilds, behind one door: imported when used, with its version check off, and complete without torch_scatter."""

from __future__ import annotations

import contextlib
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bella.errors import UserError
from benchmarks.images import ImageSplit

CAMELYON17 = "camelyon17_v1.0"
"""The folder wilds keeps the data set in."""


@dataclass
class WildsSplit(ImageSplit):
    """Images of a wilds data set, with what its own evaluation needs.

    Attributes:
        metadata: (N, M), of each image.
        source: the wilds data set.
    """

    metadata: Tensor | None = None
    source: Any = None

    def evaluate(self, predicted: Tensor) -> dict[str, float]:
        """What wilds itself says of predicted classes (N,)."""
        with _scatter():
            return dict(self.source.eval(predicted, self.targets, self.metadata)[0])


def camelyon17(root: Path) -> Any:
    """wilds' own CAMELYON17, from a folder that has it; nothing is fetched.

    Raises:
        UserError: its files are damaged.
    """
    # Without `outdated` wilds starts no thread that asks the package index for its newest version.
    with _module("outdated", None):
        from wilds.datasets.camelyon17_dataset import Camelyon17Dataset
    try:
        with warnings.catch_warnings():
            # It makes tensors of pandas 3's read-only columns, and does not write to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return Camelyon17Dataset(root_dir=str(root), download=False)
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise UserError(f"{root / CAMELYON17}: wilds cannot read it ({error}); fetch the data anew") from error


@contextlib.contextmanager
def _module(name: str, module: types.ModuleType | None) -> Iterator[None]:
    """A module under a name for a while; None: it cannot be imported."""
    before = sys.modules.get(name)
    known = name in sys.modules
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        if known:
            assert before is not None
            sys.modules[name] = before
        else:
            del sys.modules[name]


@contextlib.contextmanager
def _scatter() -> Iterator[None]:
    """torch_scatter, or where it is absent (it must be compiled) its one function that wilds calls."""
    try:
        import torch_scatter  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType("torch_scatter")
        stand_in.scatter = _mean_by_group  # type: ignore[attr-defined]
        with _module("torch_scatter", stand_in):
            yield
    else:
        yield


def _mean_by_group(*, src: Tensor, index: Tensor, dim_size: int, reduce: str) -> Tensor:
    """Mean of the values (N,) of each group, 0 for an empty one."""
    assert reduce == "mean"
    sums = torch.zeros(dim_size, dtype=src.dtype).index_add_(0, index, src)
    return sums / torch.bincount(index, minlength=dim_size).clamp(min=1)
