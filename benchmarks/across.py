"""What tables say across methods: differences with intervals, and how many deep-ensemble members a method is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import yaml

from benchmarks.comparison import REPLICATES, Replicates, compare
from benchmarks.equivalent import REFERENCE, ensemble_curve, equivalent, stored_curves
from benchmarks.records import Record
from benchmarks.stored import StoredRun
from benchmarks.task import Column, Value

DIFFERENCES = (
    Column("accuracy", "Acc. (points)", None, 100, 2),
    Column("nll", "NLL"),
    Column("ece", "ECE (points)", None, 100, 2),
    Column("near", "AUROC near OOD (points)", None, 100, 2),
    Column("far", "AUROC far OOD (points)", None, 100, 2),
)
DIFFERENCES_CAPTION = (
    f"First method less second, over the seeds that both have; in brackets the 95 % interval of {REPLICATES:,} paired bootstrap "
    "replicates over test images and seeds, bold where it does not hold 0; AUROC: of telling out-of-distribution images from the "
    "test split by entropy, mean over the sets of a group"
)
EQUIVALENTS = (
    Column("equivalent/members", "Worth (members)", "higher", 1, 1),
    Column("equivalent/parameters", "Parameters (members)", None, 1, 2),
    Column("equivalent/seconds", "Training (members)", None, 1, 2),
)
EQUIVALENTS_CAPTION = (
    "Worth: how many independently trained full-rank networks (members of `ensemble`, pooled over its seeds) reach the NLL after "
    "temperature scaling, its mean over seeds, where none predict all classes "
    "alike; inf: more than all of them; parameters, training: those of so many members"
)


def compared_pairs(folder: Path) -> list[tuple[str, str]]:
    """The pairs of rows that the suite of a results folder wants compared."""
    try:
        suite = yaml.safe_load((folder / "suite.yaml").read_text())
        return [(str(first), str(second)) for first, second in suite.get("compare", ())]
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError):
        return []  # records alone make tables too


def compare_rows(rows: Mapping[str, Sequence[StoredRun]], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, list[Value]]]:
    """A row for each pair of which both have predictions."""
    made = []
    known: Replicates = {}
    for first, second in pairs:
        found = compare(rows.get(first, ()), rows.get(second, ()), known)
        seeds = {run.record.run.seed for run in rows.get(first, ())} & {run.record.run.seed for run in rows.get(second, ())}
        if found:
            none = Value(None, None, 0, len(seeds))
            values = [
                Value(own[0], None, len(seeds), len(seeds), own[1:]) if (own := found.get(c.metric)) else none for c in DIFFERENCES
            ]
            made.append((f"{first} - {second}", values))
    return made


def ensemble_curves(folder: Path, problems: Mapping[str, Mapping[str, Sequence[StoredRun]]]) -> dict[str, list[float]]:
    """NLL over the number of members, for each problem with a suite that compares; from logits, or as published."""
    if not compared_pairs(folder):
        return {}
    found = stored_curves(folder)
    for problem, rows in problems.items():
        own = ensemble_curve(rows[REFERENCE]) if REFERENCE in rows else None
        if own is not None:
            found[problem] = own
    return found


def equivalents(rows: Mapping[str, Sequence[Record]], curve: Sequence[float]) -> dict[str, list[Value]]:
    """A method's worth and costs in members, by row."""
    members = rows.get(REFERENCE, ())
    made = {}
    for label, runs in rows.items():
        known = [float(nll) for run in runs if (nll := run.tasks["classification"].get("tempered/nll")) is not None]
        worth = equivalent(fmean(known), curve) if known else None
        made[label] = [_value(worth, len(runs))] + [
            _value(_cost(runs, key) / _cost(members, key, each=True) if members else None, len(runs))
            for key in ("trainable_parameters", "train_seconds")
        ]
    return made


def _value(mean: float | None, seeds: int) -> Value:
    return Value(mean, None, seeds if mean is not None else 0, seeds)


def _cost(runs: Sequence[Record], key: str, *, each: bool = False) -> float:
    """The mean of a cost over seeds, of all particles or of each."""
    return fmean(float(run.costs[key] or 0) / (run.run.config["particles"] if each else 1) for run in runs)
