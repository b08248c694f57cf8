"""What a run did on every single test image: small enough to be published, enough to compare methods image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.records import write_bytes
from benchmarks.stored import Array, StoredRun, entropy
from benchmarks.tasks.ood import stored_name

FILE = "examples.safetensors"


def examples_of(run: StoredRun) -> dict[str, Array]:
    """correct, confidence, nll and entropy of the averaged prediction on the test split, (N,) each, and `near/SET` and
    `far/SET` (M,), the entropies on out-of-distribution sets; nothing for a run of which neither logits nor these are stored.

    float16 but for `correct`: the numbers are the same whether they come from logits or from published results.
    """
    test = run.probabilities("test")
    if test is None:
        return run.tensors(FILE) or {}
    p, targets = test
    chosen = p[np.arange(len(targets)), targets]
    found = {
        "correct": (p.argmax(-1) == targets).astype(np.uint8),
        "confidence": p.max(-1).astype(np.float16),
        "nll": -np.log(np.clip(chosen, 1e-300, None)).astype(np.float16),
        "entropy": entropy(p).astype(np.float16),
    }
    for group, name in _outside_sets(run):
        limit = run.record.task_results["ood"].options.get("limit", 0)
        outside = run.probabilities(name) or run.probabilities(stored_name(name, limit))
        if outside is not None:
            found[f"{group}/{name}"] = entropy(outside[0]).astype(np.float16)
    return found


def _outside_sets(run: StoredRun) -> list[tuple[str, str]]:
    """(group, set) that the run's test images were told from, by the names of its metrics GROUP/SET/METRIC/SCORE."""
    metrics = [metric.split("/") for metric in run.record.tasks.get("ood", {})]
    return sorted({(parts[0], "/".join(parts[1:-2])) for parts in metrics if parts[1] != "mean"})


def write_examples(run: StoredRun, folder: Path) -> None:
    """Store them in a run's published folder, where there are any."""
    from safetensors.numpy import save

    found = examples_of(run)
    if found:
        write_bytes(folder / FILE, save(found))
