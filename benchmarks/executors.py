"""Who does the runs of a plan: this process, or the workers of a Ray cluster. Either way the same records land in one folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bella.errors import UserError
from benchmarks import environment, processes
from benchmarks.failures import clear_failure
from benchmarks.plan import Run
from benchmarks.progress import Progress
from benchmarks.runner import DataCache, Outcome, Workplace, attempt, found_done
from benchmarks.suite import Suite, write_suite

POLL_SECONDS = 1.0
"""Between looks at runs that another process has in hand."""


@dataclass(frozen=True)
class Terms:
    """How runs are done, whoever does them.

    Attributes:
        device: auto, cpu or cuda.
        checkpoint_seconds: between checkpoints of a training.
        cores: that a run asks a cluster for; None: all of a node.
        gpus: that a run asks a cluster for; a fraction shares one; None: one, where it runs on a GPU.
    """

    device: str = "auto"
    checkpoint_seconds: float = 60.0
    cores: int | None = None
    gpus: float | None = None


def run_suite(
    suite: Suite, runs: Sequence[Run], out: Path, *, terms: Terms, progress: Progress, executor: str = "local"
) -> list[Outcome]:
    """Do every run of a plan that is not done yet, in the plan's order as far as possible.

    Several processes may do the same plan in one folder: each run is done by one of them, and taken over from its checkpoint
    where that one is killed.

    Raises:
        UserError: the folder cannot be written, a record in it is damaged, or the executor cannot be had.
    """
    if executor == "local" and not processes.leads():
        return _help(runs, out, terms, progress)
    found = [found_done(run, out) for run in runs]  # a damaged record is refused before anything is trained
    try:
        write_suite(suite, out)
    except OSError as error:
        if not all(found):
            raise UserError(f"{out}: cannot be written: {error}; choose another folder with --out") from error
    for run, outcome in zip(runs, found, strict=True):
        if outcome is not None:
            clear_failure(out / run.folder)  # a process that was killed at the very end may have left one
    progress.expects(len(runs))
    for outcome in filter(None, found):
        progress.run_ends(outcome)
    remaining = [run for run, outcome in zip(runs, found, strict=True) if outcome is None]
    return [*filter(None, found), *EXECUTORS[executor](remaining, out, terms, progress)]


def prepare_process(device: torch.device) -> None:
    """Settings of a process that does runs."""
    environment.make_deterministic(device)
    environment.reuse_freed_memory()


def run_here(runs: Sequence[Run], out: Path, terms: Terms, progress: Progress) -> list[Outcome]:
    """One run after the other in this process; what another process has in hand comes last."""
    device = environment.pick_device(terms.device)
    prepare_process(device)
    with processes.joined(device):
        workplace = Workplace(out, device, terms.checkpoint_seconds, DataCache(), processes.summon)
        outcomes = _one_after_the_other(runs, workplace, progress)
        processes.dismiss()
    return outcomes


def _one_after_the_other(runs: Sequence[Run], workplace: Workplace, progress: Progress) -> list[Outcome]:
    outcomes: list[Outcome] = []
    waiting, said = list(runs), False
    while waiting:
        postponed = []
        for run in waiting:
            bar = progress.run_begins(run)
            outcome = attempt(run, workplace, bar, wait=False)
            if outcome is None:
                bar.close()
                postponed.append(run)
            else:
                progress.run_ends(outcome, bar)
                outcomes.append(outcome)
        if len(postponed) == len(waiting):
            if not said:
                progress.says(f"in the hands of another process, waited for: {', '.join(run.title for run in postponed)}")
            said = True
            time.sleep(POLL_SECONDS)
        waiting = postponed
    return outcomes


def _help(runs: Sequence[Run], out: Path, terms: Terms, progress: Progress) -> list[Outcome]:
    """Take shares of the leading process's trainings; the outcomes are its."""
    device = environment.pick_device(terms.device)
    prepare_process(device)
    with processes.joined(device):
        processes.help_with(runs, Workplace(out, device, terms.checkpoint_seconds, DataCache()), progress)
    return []


def run_on_ray(runs: Sequence[Run], out: Path, terms: Terms, progress: Progress) -> list[Outcome]:
    """Each run as a task of a Ray cluster."""
    from benchmarks.ray_executor import run_on_cluster

    return run_on_cluster(runs, out, terms, progress)


EXECUTORS: Mapping[str, Callable[[Sequence[Run], Path, Terms, Progress], list[Outcome]]] = {"local": run_here, "ray": run_on_ray}
"""Executors by the name that `--executor` takes."""
