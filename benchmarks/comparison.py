"""Are two methods different, or is it the luck of the images and seeds? Paired bootstrap over both (Efron & Tibshirani 1993).

Both methods of a pair saw the same test images, and a seed gives both the same order of the data. So each replicate draws images
and seeds with replacement, the same for both, and takes the difference: what images and seeds do to both alike falls away.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.examples import examples_of
from benchmarks.stored import BINS, Array, StoredRun

REPLICATES = 1000
METRICS = ("accuracy", "nll", "ece", "near", "far")

Interval = tuple[float, float, float]
"""A difference, and the 2.5 and 97.5 % quantiles of its replicates."""


Replicates = dict[Path, dict[str, Array]]
"""By a run's folder: its metrics on the test images as they are, then on every replicate of them, (1 + R,)."""


def compare(first: Sequence[StoredRun], second: Sequence[StoredRun], known: Replicates | None = None) -> dict[str, Interval]:
    """first - second, of accuracy, NLL (nats), ECE, and the AUROC of telling near and far out-of-distribution images from the test
    split by entropy, mean over the sets of a group.

    Over the seeds of which both have stored predictions; within a replicate all of them see the same images, for the test split is
    one. Nothing where there is no such seed.
    """
    known = {} if known is None else known
    for run in (*first, *second):
        if run.folder not in known:
            own = examples_of(run)
            known[run.folder] = _metrics(own) if own else {}
    ours, theirs = ({run.record.run.seed: run for run in side} for side in (first, second))
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    found = {}
    for metric in METRICS:
        both = [[known[run.folder][metric] for run in pair] for pair in pairs if all(metric in known[run.folder] for run in pair)]
        if not both:
            continue
        drawn = np.vstack([np.ones(len(both)), _counts("seeds", len(both))])
        differences = np.stack([left - right for left, right in both], axis=1)
        mean = (differences * drawn).sum(1) / len(both)
        low, high = np.quantile(mean[1:], (0.025, 0.975))
        found[metric] = (float(mean[0]), float(low), float(high))
    return found


@functools.cache
def _counts(what: str, size: int) -> Array:
    """How often each of `size` things is drawn, in every replicate, always the same: (R, size)."""
    random = np.random.default_rng([size, *what.encode()])
    return random.multinomial(size, np.full(size, 1 / size), size=REPLICATES).astype(np.float32)


def _metrics(run: Mapping[str, Array]) -> dict[str, Array]:
    size = len(run["correct"])
    images = np.vstack([np.ones(size, dtype=np.float32), _counts("images", size)])
    confidence = run["confidence"].astype(np.float32)
    gap = np.zeros((size, BINS), dtype=np.float32)
    gap[np.arange(size), np.minimum((confidence * BINS).astype(int), BINS - 1)] = confidence - run["correct"]
    found = {
        "accuracy": images @ run["correct"].astype(np.float32) / size,
        "nll": images @ run["nll"].astype(np.float32) / size,
        "ece": np.abs(images @ gap).sum(1) / size,
    }
    for group in ("near", "far"):
        areas = []
        for name in sorted(own for own in run if own.startswith(f"{group}/")):
            counts = np.vstack([np.ones(len(run[name]), dtype=np.float32), _counts(name, len(run[name]))])
            areas.append(weighted_auroc(run["entropy"], run[name], images, counts))
        if areas:
            found[group] = np.mean(areas, axis=0)
    return found


def weighted_auroc(inside: Array, outside: Array, inside_counts: Array, outside_counts: Array) -> Array:
    """Area under the ROC curve, outside scores higher and ties counting half, for every row of counts (R, N), (R, M): (R,)."""
    inside, outside = inside.astype(np.float32)[:, None], outside.astype(np.float32)[None]
    won = (inside < outside) + np.float32(0.5) * (inside == outside)  # (N, M)
    pairs = ((inside_counts @ won) * outside_counts).sum(1, dtype=np.float64)
    return pairs / (inside_counts.sum(1) * outside_counts.sum(1))
