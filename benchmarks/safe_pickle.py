"""Pickles as CIFAR is published in, read without running what they ask for: arrays, words and numbers, nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bella.errors import UserError


class _Refused(pickle.UnpicklingError):
    """A pickle asks for something that no array needs."""


def _latin1(text: Any = "", encoding: Any = "latin1") -> bytes:
    """What Python 2's and 3's pickles write bytes as; the codecs' own `encode` would load any codec that is named."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


class _Array(np.ndarray):
    """Stands in for numpy.ndarray where a pickle names it: it can be named, and not be called."""

    def __new__(cls, *arguments: Any) -> _Array:
        raise _Refused("an array of a size that the file does not hold")


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """numpy's `_reconstruct` as pickles call it: an empty array, filled from the file afterwards."""
    if kind is not _Array or shape != (0,):
        raise _Refused("an array of a size that the file does not hold")
    return np.ndarray((0,), dtype=np.int8)


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _empty,  # NumPy 2
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("builtins", "bytes"): _latin1,
    ("__builtin__", "bytes"): _latin1,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def read_pickle(file: Path) -> Any:
    """A file's dictionaries, lists, words, numbers and arrays.

    Raises:
        UserError: it asks for anything else, which is not run; or it is damaged.
    """
    try:
        with open(file, "rb") as opened:
            return _Reader(opened, encoding="latin1").load()
    except _Refused as error:
        raise UserError(f"{file}: refused: it asks for {error}, which these data never do; fetch the data anew") from None
    except Exception as error:  # garbage makes an unpickler raise nearly anything
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error}); delete it and fetch the data anew") from error
