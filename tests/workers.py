"""Runs of a suite in processes that may be killed.

They are forked from a server that has imported torch and run nothing: neither imports nor other tests' threads are in them.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["workers", "benchmarks.executors", "benchmarks.image_backbones", "benchmarks.methods", "baselines.full_rank"]
TASKS = [
    "timm",
    "benchmarks.tasks.classification",
    "benchmarks.problems.random_images",
    "bella.svgd",
    "torchmetrics",
    "sklearn.metrics",
]

SUITE: dict[str, Any] = {
    "name": "tiny",
    "methods": ["svgd", "bella-svgd"],
    "problems": [{"problem": "random-images", "settings": {"image_size": 16, "classes": 3, "train_limit": 64, "test_limit": 16}}],
    "tasks": ["classification"],
    "settings": {"backbone": "timm:test_efficientnet?random", "particles": 2, "epochs": 3, "batch_size": 16},
}


def run(
    suite: dict[str, Any], out: Path, log: Path, checkpoint_seconds: float, setup: str = "", progress: Semaphore | None = None
) -> None:
    """Do a suite in this process; what was trained here is appended to `log`, and the exit code says whether all is done.

    `progress` is released where a training begins or goes on, and at every checkpoint.
    """
    import torch

    from bella import resume
    from benchmarks import progress as shown
    from benchmarks.executors import Terms, run_suite
    from benchmarks.plan import make_plan
    from benchmarks.suite import Suite

    torch.set_num_threads(1)
    if setup:
        exec(setup, {})
    chosen = Suite.model_validate(suite)
    resume.LARGEST_SHARE = math.inf  # checkpoints are written as often as asked, even if that is most of the time
    restore, save = resume.Checkpoints.restore, resume.Checkpoints.save

    def noted_restore(self: resume.Checkpoints, *particulars: Any) -> Any:
        standing = restore(self, *particulars)
        if progress is not None:
            progress.release()
        if standing is not None:
            with open(log.with_suffix(".resumed"), "a") as file:
                file.write(f"epoch {len(standing.history.epochs)} step {standing.steps}\n")
        return standing

    def noted_save(self: resume.Checkpoints, *particulars: Any) -> None:
        save(self, *particulars)
        if progress is not None:
            progress.release()

    resume.Checkpoints.restore = noted_restore  # type: ignore[method-assign]
    resume.Checkpoints.save = noted_save  # type: ignore[method-assign]
    with shown.Progress() as bars:
        outcomes = run_suite(chosen, make_plan(chosen), out, terms=Terms("cpu", checkpoint_seconds), progress=bars)
    with open(log, "a") as file:
        for outcome in outcomes:
            if outcome.trained:
                file.write(f"{outcome.run.folder}\n")
            if outcome.failure is not None:
                file.write(f"failed: {outcome.failure}\n")
    sys.stderr.flush()
    os._exit(any(outcome.failure is not None for outcome in outcomes))


def use_fork_server(preloaded: list[str]) -> None:
    """Have processes forked from a server that has imported these; Python has one server, and keeps the first one's imports."""
    server = forkserver._forkserver  # type: ignore[attr-defined]
    if server._preload_modules != preloaded:
        server._stop()
        CONTEXT.set_forkserver_preload(preloaded)


def start(*args: Any, **kwargs: Any) -> BaseProcess:
    """Begin `run` in a process of its own."""
    use_fork_server([*PRELOADED, *TASKS])
    process = CONTEXT.Process(target=run, args=args, kwargs=kwargs)
    process.start()
    return process
