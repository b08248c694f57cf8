"""The deep-ensemble equivalent of a method: how many independently trained full-rank networks do as well?

Source: Ashukha et al. 2020, "Pitfalls of In-Domain Uncertainty Estimation and Ensembling in Deep Learning" (arXiv 2002.06470),
which compares after temperature scaling, by log-likelihood.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from benchmarks.records import write_text
from benchmarks.stored import Array, StoredRun, softmax

FILE = "ensemble-curves.json"
REFERENCE = "ensemble"
"""The row whose members are the measure."""

SUBSETS = 10
"""Ensembles that are averaged over for each size."""


def ensemble_curve(runs: Sequence[StoredRun], seed: int = 0) -> list[float] | None:
    """Test NLL (nats, after temperature scaling on the validation split) of ensembles of 0, 1, 2, ... members, pooled over the
    seeds' runs; none predict all classes alike. None where logits are missing."""
    splits: dict[str, list[Array]] = {"validation": [], "test": []}
    targets: dict[str, Array] = {}
    for run in runs:
        for name in splits:
            found = run.predictions(name)
            if found is None:
                return None
            splits[name].append(softmax(found[0]).astype(np.float32))
            targets[name] = found[1]
    members = {name: np.concatenate(parts) for name, parts in splits.items()}
    count = len(members["test"])
    random = np.random.default_rng(seed)
    curve = [float(np.log(members["test"].shape[-1]))]
    for size in range(1, count + 1):
        drawn = [random.permutation(count)[:size] for _ in range(SUBSETS if size < count else 1)]
        curve.append(float(np.mean([_tempered_nll({s: m[own].mean(0) for s, m in members.items()}, targets) for own in drawn])))
    return curve


def _tempered_nll(p: dict[str, Array], targets: dict[str, Array]) -> float:
    log_p = {name: np.log(np.clip(own.astype(np.float64), 1e-30, None)) for name, own in p.items()}

    def nll(name: str, inverse: float) -> float:
        z = log_p[name] * inverse
        chosen = z[np.arange(len(z)), targets[name]]
        top = z.max(-1)
        return float(np.mean(top + np.log(np.exp(z - top[:, None]).sum(-1)) - chosen))

    best = minimize_scalar(lambda log: nll("validation", float(np.exp(log))), bounds=(np.log(1e-2), np.log(1e2)), method="bounded")
    return nll("test", float(np.exp(best.x)))


def equivalent(nll: float, curve: Sequence[float]) -> float:
    """How many members reach an NLL, linear between whole numbers from 0; infinite where not all of them do."""
    best = np.minimum.accumulate(curve)
    if nll >= best[0]:
        return 0.0
    if nll < best[-1] * (1 - 1e-3):  # rounding, and where the search for a temperature stops, are not another member
        return float("inf")
    nll = max(nll, float(best[-1]))
    reached = int(np.argmax(best <= nll))  # the first that does
    before, after = best[reached - 1], best[reached]
    return reached - 1 + float((before - nll) / (before - after))


def stored_curves(folder: Path) -> dict[str, list[float]]:
    """Curves of a results folder by problem, as they were stored; none where none are."""
    try:
        content = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(k): [float(x) for x in v] for k, v in content.items()} if isinstance(content, dict) else {}


def write_curves(curves: dict[str, list[float]], folder: Path) -> None:
    """Store curves beside the records: published results have no logits to work them out from."""
    write_text(folder / FILE, json.dumps(curves, indent=1) + "\n")
