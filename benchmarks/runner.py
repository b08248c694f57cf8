"""Do one run: train or go on training, evaluate, record. What is done is found by its hash and not done again."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from bella.costs import PeakMemory, count_costs, peak_memory
from bella.errors import UserError
from bella.files import remove_leftovers
from bella.fit import OnStep, fit
from bella.inference import Inference
from bella.particles import Particles, Shard, derive_seed
from bella.resume import Checkpoints, History
from bella.sharding import everyone, process_count, split
from benchmarks import environment
from benchmarks.failures import clear_failure, reason_of, write_failure
from benchmarks.onednn import fast_linear
from benchmarks.plan import Run, TaskPlan
from benchmarks.posterior import PARTICLES, StoredPosterior
from benchmarks.problem import Data
from benchmarks.progress import RunProgress
from benchmarks.records import FILE, SCHEMA, Record, RunInfo, TaskResult, read_record, write_record
from benchmarks.registries import METHODS, PROBLEMS, TASKS

T = TypeVar("T")

LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Where and how runs are done.

    Attributes:
        out: the results folder.
        device: where to compute.
        checkpoint_seconds: between checkpoints of a training.
        load_data: a run's data.
        summon: called before a run is trained: other processes that take a share are told here.
    """

    out: Path
    device: torch.device
    checkpoint_seconds: float
    load_data: Callable[[Run], Data]
    summon: Callable[[Run], None] = lambda run: None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one run: whether it was trained now, which tasks were evaluated now, why it failed, its seconds."""

    run: Run
    trained: bool = False
    evaluated: tuple[str, ...] = ()
    accuracy: float | None = None
    failure: str | None = None
    seconds: float = 0.0


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
    if not path.exists():
        return None
    record = read_record(path)
    if record.run.hash != run.hash:
        raise UserError(f"{path}: the record of another run ({record.run.hash}): remove its folder and run the suite again")
    return record


def found_done(run: Run, out: Path) -> Outcome | None:
    """The outcome of a run whose record answers all that is asked; None where something is to do."""
    record = stored_record(run, out)
    return None if record is None or missing_tasks(run, record) else Outcome(run, accuracy=_accuracy(record))


def _accuracy(record: Record) -> float | None:
    return record.tasks.get("classification", {}).get("accuracy")


def attempt(run: Run, workplace: Workplace, progress: RunProgress, *, wait: bool) -> Outcome | None:
    """Do what is not done of a run, alone among all processes; None where another one has it in hand.

    A run that cannot be done is recorded as failed, and the suite goes on.

    Args:
        run: the run.
        workplace: where and how.
        progress: told of steps and batches.
        wait: until the other process is done with it, or gone.
    """
    folder = workplace.out / run.folder
    begun = time.perf_counter()
    if run.missing is not None:
        return Outcome(run, failure=run.missing)
    try:
        if (done := found_done(run, workplace.out)) is not None:
            clear_failure(folder)
            return done
        with _claimed(folder, wait) as mine:
            if not mine:
                return None
            try:
                remove_leftovers(folder)
                # Read now: another process may have done it while this one waited.
                outcome = _do(run, stored_record(run, workplace.out), workplace, progress)
                clear_failure(folder)
                return dataclasses.replace(outcome, seconds=time.perf_counter() - begun)
            except Exception as error:
                write_failure(error, folder)  # while nobody else can be done with the run
                raise
    except Exception as error:
        if process_count() > 1 and not isinstance(error, UserError):
            raise  # the others may wait in the middle of a step: torchrun ends them all, and the same command goes on
        return Outcome(run, failure=reason_of(error), seconds=time.perf_counter() - begun)


@contextmanager
def _claimed(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether the run is this process's own while the context lasts. The system frees the claim of a process that is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _do(run: Run, record: Record | None, workplace: Workplace, progress: RunProgress) -> Outcome:
    """Train a run unless its record says it is trained, then evaluate the tasks its record does not answer."""
    folder = workplace.out / run.folder
    posterior = StoredPosterior(run, folder, lambda: workplace.load_data(run), workplace.device, progress.evaluated)
    checkpoints = Checkpoints(folder, workplace.checkpoint_seconds)
    trained = record is None or (not (folder / PARTICLES).exists() and bool(missing_tasks(run, record)))
    with fast_linear(workplace.device):
        if trained:
            workplace.summon(run)
            record = _within_memory(posterior, partial(_train, run, posterior, checkpoints, workplace.device, progress))
            write_record(record, folder)
        checkpoints.clear()
        assert record is not None
        missing = missing_tasks(run, record)
        for plan in missing:
            task = TASKS.resolve(plan.name)()
            options = task.options.model_validate(plan.options)
            started = time.perf_counter()
            record.tasks[plan.name] = _within_memory(posterior, partial(task.evaluate, posterior, options))
            seconds = time.perf_counter() - started
            record.task_results[plan.name] = TaskResult(hash=plan.hash, options=plan.options)
            record.costs["eval_seconds"] = float(record.costs.get("eval_seconds") or 0.0) + seconds
            if posterior.chunk_size != run.chunk_size:  # memory did not suffice
                record.environment["chunk_size"] = posterior.chunk_size
            write_record(record, folder)
    return Outcome(run, trained, tuple(plan.name for plan in missing), _accuracy(record))


def _within_memory(posterior: StoredPosterior, work: Callable[[], T]) -> T:
    """What `work` gives, with fewer particles computed at once where the GPU's memory does not suffice.

    Raises:
        UserError: it does not suffice for one particle at a time.
    """
    while process_count() == 1:
        try:
            return work()
        except torch.OutOfMemoryError as error:
            if not posterior.halve_chunks():
                raise UserError("out of GPU memory with one particle at a time: lower batch_size, or take a larger GPU") from error
        gc.collect()
        torch.cuda.empty_cache()
    return work()  # with several processes all would have to try again


def _train(run: Run, posterior: StoredPosterior, checkpoints: Checkpoints, device: torch.device, progress: RunProgress) -> Record:
    """Train one run, from its checkpoint on where there is one, and store its particles; its record has no task results yet."""
    rule = METHODS.resolve(run.method).rule(**run.inference_options)
    with peak_memory(device) as peak:
        trained, history = _fit(run, posterior, rule, checkpoints, device, progress.stepped)
        particles, drawn = _draw(run, posterior, rule, trained, history, device) if rule.draws else (trained, {})
    posterior.store(particles)
    data = posterior.data()
    counted = count_costs(
        posterior.base_parameters,
        posterior.base_bytes,
        trained.trainable_parameters,
        run.particles,
        particles.trainable_parameters,
    )
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
            "inference": {**rule.describe(len(data.training)), **drawn},
        },
        tasks={},
        task_results={},
        costs=_costs(counted, history, peak),
        environment={**environment.describe(device), "chunk_size": particles.chunk_size, "processes": _processes(particles)},
    )


def _draw(
    run: Run, posterior: StoredPosterior, rule: Inference, trained: Particles, history: History, device: torch.device
) -> tuple[Particles, dict[str, float]]:
    """The run's particles, drawn from what was learned; it counts as training."""
    particles = posterior.fresh_particles()
    begun = time.perf_counter()
    found = rule.draw(trained, particles, posterior.data().training, device, derive_seed("draws", run.seed))
    history.train_seconds += time.perf_counter() - begun
    return particles, found


def shares_training(run: Run) -> bool:
    """Whether processes that torchrun started share a run's training; else it is the leading one's alone."""
    return 1 < process_count() <= run.particles and METHODS.resolve(run.method).splits


def _processes(particles: Particles) -> int:
    return process_count() if particles.shard.total > particles.num_particles else 1


def _fit(
    run: Run,
    posterior: StoredPosterior,
    rule: Inference,
    checkpoints: Checkpoints,
    device: torch.device,
    on_step: OnStep | None,
) -> tuple[Particles, History]:
    """Train this process's particles of a run: all of them, unless torchrun has started several."""
    data = _data_everywhere(posterior) if shares_training(run) else posterior.data()
    torch.manual_seed(derive_seed("run", run.seed))
    particles = posterior.fresh_particles(
        split(run.particles) if shares_training(run) else Shard.whole(rule.trained_particles(run.particles))
    )
    rule.check(particles)
    history = fit(
        particles,
        rule,
        data.training,
        data.validation,
        run.recipe,
        seed=derive_seed("minibatches", run.seed),
        device=device,
        checkpoints=checkpoints,
        on_step=on_step,
    )
    return particles, history


def _data_everywhere(posterior: StoredPosterior) -> Data:
    """The data, if every process can read them: none may wait for one that cannot."""
    problem = None
    try:
        data = posterior.data()
    except UserError as error:
        problem = error
    if not everyone(problem is None):
        raise problem or UserError("another process cannot read the data: they must be on every machine")
    return data


def train_share(run: Run, workplace: Workplace) -> None:
    """Take this process's share of a training that the leading process does."""
    folder = workplace.out / run.folder
    posterior = StoredPosterior(run, folder, lambda: workplace.load_data(run), workplace.device)
    checkpoints = Checkpoints(folder, workplace.checkpoint_seconds)
    rule = METHODS.resolve(run.method).rule(**run.inference_options)
    with fast_linear(workplace.device):
        particles, _ = _fit(run, posterior, rule, checkpoints, workplace.device, None)
        posterior.store(particles)


def _costs(counted: Any, history: History, peak: PeakMemory) -> dict[str, float | int | str | None]:
    return {
        **dataclasses.asdict(counted),
        "peak_memory_bytes": peak.bytes,
        "peak_memory_source": peak.source,
        "train_seconds": history.train_seconds,
        "eval_seconds": 0.0,
        "train_examples_per_second": history.examples / history.train_seconds,
    }


class DataCache:
    """The data of the problem in hand: neighbouring runs share them, another problem replaces them."""

    def __init__(self) -> None:
        self._key: Any = None
        self._data: Data | None = None

    def __call__(self, run: Run) -> Data:
        """A run's data."""
        key = (run.problem, run.data_options)
        if self._data is None or key != self._key:
            self._data = PROBLEMS.resolve(run.problem)().load(run.data_options)
            self._key = key
        return self._data
