"""The runs of a suite on a Ray cluster: each a task that asks for its cores and GPUs; records land in one shared folder.

A run whose worker or node is lost is tried elsewhere by Ray, and goes on from its checkpoint. Runs are claimed as on one machine,
so the file system of the shared folder must lock files.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bella.errors import UserError
from benchmarks.executors import Terms, prepare_process
from benchmarks.failures import reason_of, write_failure
from benchmarks.plan import Run
from benchmarks.progress import Progress, RunBar
from benchmarks.runner import DataCache, Outcome, Workplace, attempt, found_done

RETRIES = 5
"""How often a run whose worker was lost is tried again."""
TELL_SECONDS = 0.5
"""The least time between two messages of one run."""


class Told:
    """Progress of a run on a worker, sent to where the suite was started."""

    def __init__(self, number: int, queue: Any) -> None:
        self._number = number
        self._queue = queue
        self._next = 0.0

    def stepped(self, done: int, total: int, rate: float) -> None:
        """A training step is done."""
        self._tell("stepped", done, total, rate)

    def evaluated(self, done: int, total: int) -> None:
        """A batch is evaluated."""
        self._tell("evaluated", done, total)

    def _tell(self, what: str, *numbers: float) -> None:
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + TELL_SECONDS
            self._queue.actor.put_nowait.remote((self._number, what, numbers))  # nobody waits for it to arrive


@functools.cache
def _data_of_this_worker() -> DataCache:
    return DataCache()


def work(number: int, run: Run, out: Path, device: str, checkpoint_seconds: float, threads: int, queue: Any) -> Outcome:
    """Do one run on a worker."""
    import torch

    torch.set_num_threads(threads)
    target = torch.device(device)
    prepare_process(target)
    workplace = Workplace(out, target, checkpoint_seconds, _data_of_this_worker())
    outcome = attempt(run, workplace, Told(number, queue), wait=True)
    assert outcome is not None
    return outcome


def run_on_cluster(runs: Sequence[Run], out: Path, terms: Terms, progress: Progress) -> list[Outcome]:
    """Do runs on the cluster that RAY_ADDRESS names, or that runs on this machine, or that is started here for them.

    Raises:
        UserError: Ray is not installed, the cluster has too little for a run, or its nodes do not share the results folder.
    """
    if not runs:
        return []
    try:
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        raise UserError("--executor ray: Ray is not installed: pip install 'bella-bench[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    try:
        device, cores, gpus = _share(ray.nodes(), terms)
        # On this node: its loss is the end anyway, another's must not be.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        remote = ray.remote(work).options(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)
        threads = max(1, int(cores))
        folder = out.resolve()
        pending = {
            remote.remote(number, run, folder, device, terms.checkpoint_seconds, threads, queue): number
            for number, run in enumerate(runs)
        }
        outcomes = []
        bars: dict[int, RunBar] = {}
        while pending:
            ready, _ = ray.wait(list(pending), timeout=TELL_SECONDS)
            _show(queue, runs, bars, progress)
            for reference in ready:
                number = pending.pop(reference)
                outcome = _result(ray, reference, runs[number], folder)
                if outcome.failure is None and found_done(runs[number], out) is None:
                    raise UserError(
                        f"{folder}: {runs[number].title} is done on the cluster and not here: all nodes must share this folder"
                    )
                progress.run_ends(outcome, bars.pop(number, None))
                outcomes.append(outcome)
        return outcomes
    finally:
        if ours:
            ray.shutdown()


def _share(nodes: list[dict[str, Any]], terms: Terms) -> tuple[str, int, float]:
    """The device of each run, and the cores and GPUs it asks for.

    Raises:
        UserError: no node has them.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    most_gpus = max((own.get("GPU", 0.0) for own in alive), default=0.0)
    device = terms.device if terms.device != "auto" else "cuda" if most_gpus else "cpu"
    gpus = terms.gpus if terms.gpus is not None else float(device == "cuda")
    able = [own.get("CPU", 0.0) for own in alive if own.get("GPU", 0.0) >= gpus and own.get("CPU", 0.0) >= (terms.cores or 1)]
    if not able:
        raise UserError(
            f"no node of the Ray cluster has {terms.cores or 1} cores and {gpus:g} GPUs, which a run asks for: "
            "lower --cores or --gpus, or add nodes"
        )
    return device, terms.cores or int(min(able)), gpus


def _result(ray: Any, reference: Any, run: Run, folder: Path) -> Outcome:
    """A run's outcome; one whose workers were lost again and again has failed, and so has one that no worker could begin."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        failure = UserError(f"its worker could not begin: {' '.join(str(error.cause).split())[:200]}")
    except ray.exceptions.RayError as error:
        failure = UserError(f"its workers were lost {RETRIES + 1} times: {' '.join(str(error).split())[:200]}")
    write_failure(failure, folder / run.folder)
    return Outcome(run, failure=reason_of(failure))


def _show(queue: Any, runs: Sequence[Run], bars: dict[int, RunBar], progress: Progress) -> None:
    """Bring the bars up to date."""
    latest = {number: (what, numbers) for number, what, numbers in queue.get_nowait_batch(queue.qsize())}
    for number, (what, numbers) in latest.items():
        if number not in bars:
            bars[number] = progress.run_begins(runs[number])
        getattr(bars[number], what)(*numbers)
