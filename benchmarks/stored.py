"""What lies in a results folder, read without torch: records, logits and distances as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from bella.errors import UserError
from bella.files import CHECKSUM, checksum
from benchmarks.records import FILE, Record, read_record

Array = np.ndarray

BINS = 15
"""Of calibration errors."""


@dataclass(frozen=True)
class StoredRun:
    """One finished run: its record, and its folder, which in published results holds nothing else."""

    record: Record
    folder: Path

    def predictions(self, split: str) -> tuple[Array, Array] | None:
        """Logits (n, N, C) float64 and targets (N,) on a split; None where none are stored."""
        tensors = self._load(self.folder / "logits" / f"{split}.safetensors")
        return None if tensors is None else (tensors["logits"].astype(np.float64), tensors["targets"])

    def probabilities(self, split: str) -> tuple[Array, Array] | None:
        """Averaged probabilities (N, C) and targets (N,) on a split; None where none are stored."""
        found = self.predictions(split)
        if found is None:
            return None
        logits, targets = found
        if self.record.run.config["recipe"]["average"] == "logits":
            return softmax(logits.mean(0)), targets
        return softmax(logits).mean(0), targets

    def distances(self) -> dict[str, Array] | None:
        """Distances (n, n) between particles; None where none are stored."""
        return self.tensors("distances.safetensors")

    def tensors(self, name: str) -> dict[str, Array] | None:
        """What a file of the run's folder holds; None where there is none."""
        return self._load(self.folder / name)

    def _load(self, path: Path) -> dict[str, Array] | None:
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="np") as opened:
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
                expected = (opened.metadata() or {}).get(CHECKSUM)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it and run the suite again") from error
        found = checksum((name, str(a.dtype), a.shape, np.ascontiguousarray(a).data.cast("B")) for name, a in arrays.items())
        if expected not in (None, found):
            raise UserError(f"{path}: damaged (its checksum is another one); delete it and run the suite again")
        return arrays


def find_runs(folder: Path) -> list[StoredRun]:
    """All runs below a folder, by path.

    Raises:
        UserError: the folder is missing or has none, or a record is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; `bella run SUITE --out {folder}` makes one")
    paths = sorted(folder.glob(f"runs/*/*/*/{FILE}"))
    if not paths:
        raise UserError(
            f"{folder}: no records in it (expected runs/PROBLEM/METHOD/SEED/{FILE}); `bella run SUITE --out {folder}` writes them"
        )
    return [StoredRun(read_record(path), path.parent) for path in paths]


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def entropy(probabilities: Array) -> Array:
    """Entropy in nats over the last axis."""
    return -(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum(-1)
