"""Do the runs of a plan: train or load, evaluate, record. Finished work is found by its hash and not done again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bella.costs import PeakMemory, count_costs, peak_memory
from bella.errors import UserError
from bella.fit import History, fit
from bella.particles import derive_seed
from benchmarks import environment
from benchmarks.onednn import fast_linear
from benchmarks.plan import Run, TaskPlan
from benchmarks.posterior import PARTICLES, StoredPosterior
from benchmarks.problem import Data
from benchmarks.progress import Progress
from benchmarks.records import FILE, SCHEMA, Record, RunInfo, TaskResult, read_record, write_record
from benchmarks.registries import METHODS, PROBLEMS, TASKS
from benchmarks.suite import Suite, write_suite


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one run: whether it was trained now, and which tasks were evaluated now."""

    run: Run
    trained: bool
    evaluated: tuple[str, ...]


def missing_tasks(run: Run, record: Record | None) -> list[TaskPlan]:
    """The tasks that a run's record does not answer yet."""
    if record is None:
        return list(run.tasks)
    results = record.task_results
    return [task for task in run.tasks if task.name not in results or results[task.name].hash != task.hash]


def stored_record(run: Run, out: Path) -> Record | None:
    """The record of a finished training, if there is one.

    Raises:
        UserError: there is a damaged one.
    """
    path = out / run.folder / FILE
    return read_record(path) if path.exists() else None


def run_suite(suite: Suite, runs: Sequence[Run], out: Path, *, device: torch.device, progress: Progress) -> list[Outcome]:
    """Do every run of a plan that is not done yet.

    Raises:
        UserError: the folder cannot be written, or a run cannot be done.
    """
    records = [stored_record(run, out) for run in runs]  # a damaged record is refused before anything is trained
    try:
        write_suite(suite, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}; choose another folder with --out") from error
    environment.make_deterministic(device)
    environment.reuse_freed_memory()
    load_data = _DataCache()
    outcomes = []
    for number, (run, record) in enumerate(zip(runs, records, strict=True), start=1):
        progress.run_begins(run, number, len(runs))
        with fast_linear(device):
            outcome = run_one(run, record, out, device=device, load_data=load_data, progress=progress)
        outcomes.append(outcome)
        progress.run_ends(run, outcome.trained, outcome.evaluated, read_record(out / run.folder / FILE))
    return outcomes


def run_one(
    run: Run,
    record: Record | None,
    out: Path,
    *,
    device: torch.device,
    load_data: Callable[[Run], Data],
    progress: Progress,
) -> Outcome:
    """Train a run unless its record says it is trained, then evaluate the tasks its record does not answer."""
    folder = out / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    posterior = StoredPosterior(run, folder, lambda: load_data(run), device, progress.evaluated)
    trained = record is None or (not (folder / PARTICLES).exists() and bool(missing_tasks(run, record)))
    if trained:
        record = _train(run, posterior, device, progress)
        write_record(record, folder)
    assert record is not None
    missing = missing_tasks(run, record)
    for plan in missing:
        task = TASKS.resolve(plan.name)()
        started = time.perf_counter()
        record.tasks[plan.name] = task.evaluate(posterior, task.options.model_validate(plan.options))
        seconds = time.perf_counter() - started
        record.task_results[plan.name] = TaskResult(hash=plan.hash, options=plan.options)
        record.costs["eval_seconds"] = float(record.costs.get("eval_seconds") or 0.0) + seconds
        write_record(record, folder)
    return Outcome(run, trained, tuple(plan.name for plan in missing))


def _train(run: Run, posterior: StoredPosterior, device: torch.device, progress: Progress) -> Record:
    """Train one run and store its particles; its record has no task results yet."""
    data = posterior.data()
    rule = METHODS.resolve(run.method).rule(**run.inference_options)
    torch.manual_seed(derive_seed("run", run.seed))
    with peak_memory(device) as peak:
        particles = posterior.fresh_particles()
        history = fit(
            particles,
            rule,
            data.training,
            data.validation,
            run.recipe,
            seed=derive_seed("minibatches", run.seed),
            device=device,
            on_step=progress.stepped,
        )
    posterior.store(particles)
    per_particle = particles.trainable_parameters_per_particle
    counted = count_costs(posterior.base_parameters, posterior.base_bytes, per_particle, run.particles)
    return Record(
        schema_=SCHEMA,
        run=RunInfo(
            problem=run.problem,
            method=run.method,
            label=run.label,
            seed=run.seed,
            backbone=run.backbone,
            weights=run.weights.description,
            data=data.description,
            hash=run.hash,
            config=run.config,
        ),
        training={
            "best_epoch": history.best_epoch,
            "epochs": [dataclasses.asdict(epoch) for epoch in history.epochs],
            "inference": rule.describe(len(data.training)),
        },
        tasks={},
        task_results={},
        costs=_costs(counted, history, peak),
        environment={**environment.describe(device), "chunk_size": particles.chunk_size},
    )


def _costs(counted: Any, history: History, peak: PeakMemory) -> dict[str, float | int | str | None]:
    return {
        **dataclasses.asdict(counted),
        "peak_memory_bytes": peak.bytes,
        "peak_memory_source": peak.source,
        "train_seconds": history.train_seconds,
        "eval_seconds": 0.0,
        "train_examples_per_second": history.examples / history.train_seconds,
    }


class _DataCache:
    """The data of the problem in hand: neighbouring runs share them, another problem replaces them."""

    def __init__(self) -> None:
        self._key: Any = None
        self._data: Data | None = None

    def __call__(self, run: Run) -> Data:
        key = (run.problem, run.data_options)
        if self._data is None or key != self._key:
            self._data = PROBLEMS.resolve(run.problem)().load(run.data_options)
            self._key = key
        return self._data
