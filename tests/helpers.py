"""The command in this process, and finished runs as they lie in a results folder, made without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import cli
from benchmarks.records import Record, RunInfo, TaskResult, write_record


def bella(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command in this process; its exit code."""
    monkeypatch.setattr("sys.argv", ["bella", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


@dataclass
class Stored:
    """One run: its row, seed, accuracy, and what its caption says of the data."""

    label: str
    seed: int
    accuracy: float
    data: str = "made-up data"


def store_runs(folder: Path, runs: Sequence[Stored]) -> None:
    """Write records, logits and distances of runs with 3 particles on 40 examples of 4 classes."""
    for run in runs:
        random = np.random.default_rng(run.seed)
        info = RunInfo(
            problem="digits",
            method="single",
            label=run.label,
            seed=run.seed,
            backbone="b",
            weights="random weights",
            data=run.data,
            hash=f"{run.label}{run.seed}",
            config={"particles": 3, "recipe": {"average": "probabilities"}, "seed": run.seed},
        )
        record = Record(
            schema_=1,
            run=info,
            training={},
            tasks={"classification": {"accuracy": run.accuracy, "nll": 1 - run.accuracy, "ece": None}},
            task_results={"classification": TaskResult(hash="h", options={})},
            costs={"trainable_parameters": 1000, "trainable_parameters_per_particle": 500, "stored_bytes": 2000},
            environment={"python": "3"},
        )
        own = folder / "runs" / "digits" / run.label / f"seed{run.seed}-{info.hash}"
        write_record(record, own)
        (own / "logits").mkdir()
        targets = random.integers(4, size=40)
        logits = random.normal(size=(3, 40, 4)) + 3 * np.eye(4)[targets]
        save_file({"logits": logits.astype(np.float32), "targets": targets}, own / "logits" / "test.safetensors")
        save_file({"weights": np.ones((3, 3)) - np.eye(3)}, own / "distances.safetensors")
