"""Trainings whose particles are split over processes, and the same in one: started by tests, imported by their processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from workers import CONTEXT, use_fork_server

KINDS = ("low-rank", "full-rank")


def make(kind: str, dtype: torch.dtype, rows: slice, total: int) -> Any:
    from conftest import make_network

    from baselines.full_rank import FullRankParticles
    from bella.heads import particle_seeds
    from bella.lowrank import LowRankParticles

    seeds = particle_seeds(1, total)[rows]
    if kind == "full-rank":
        return FullRankParticles(make_network(dtype), len(seeds), head="4", seeds=seeds)
    return LowRankParticles(make_network(dtype), len(seeds), targets=["0", "2"], head="4", rank=2, seeds=seeds)


class StoppedError(Exception):
    """Raised where a test stops a training."""


def train(kind: str, rule: Callable[[], Any], total: int, options: dict[str, Any]) -> tuple[list[torch.Tensor], Any]:
    """The storage of all particles after a training, and its history. In a group of processes each trains its share.

    Options: dtype; recipe; folder for checkpoints at every step; stop after so many steps.
    """
    from conftest import make_points

    from bella.fit import Recipe, fit
    from bella.resume import Checkpoints
    from bella.sharding import split

    dtype = options.get("dtype", torch.float64)
    shard = split(total)
    particles = make(kind, dtype, shard.rows, total)
    particles.shard = shard
    folder = options.get("folder")
    stop = options.get("stop", 0)

    def on_step(done: int, _: int, __: float) -> None:
        if done == stop:
            raise StoppedError

    history = fit(
        particles,
        rule(),
        make_points(24, 1, dtype),
        make_points(10, 2, dtype),
        Recipe(**{"epochs": 1, "batch_size": 8, "learning_rate": 0.05, **options.get("recipe", {})}),
        seed=5,
        device=torch.device("cpu"),
        checkpoints=None if folder is None else Checkpoints(Path(folder), 0.0),
        on_step=on_step,
    )
    return [shard.gather(stored.detach()) for stored in particles.storage], [vars(epoch) for epoch in history.epochs]


def _process(rank: int, size: int, meeting: str, answers: Any, arguments: tuple[Any, ...]) -> None:
    from datetime import timedelta

    import torch.distributed as dist

    from bella import resume

    resume.LARGEST_SHARE = float("inf")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        found: Any = train(*arguments)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    if rank == 0:
        answers.put([t.tolist() for t in found[0]] if not isinstance(found, str) else found)
        answers.put(found[1] if not isinstance(found, str) else None)
    dist.destroy_process_group()


def train_on(size: int, folder: Path, *arguments: Any) -> tuple[Any, Any]:
    """`train` in a group of so many processes: nested lists of the storage (or the error), and the history."""
    use_fork_server(["shards", "conftest", "bella.fit", "bella.lowrank", "baselines.full_rank", "baselines.released_svgd"])
    answers = CONTEXT.SimpleQueue()
    meeting = folder / f"meeting-{len(list(folder.iterdir()))}"
    started = [CONTEXT.Process(target=_process, args=(r, size, str(meeting), answers, arguments)) for r in range(size)]
    for process in started:
        process.start()
    found = answers.get(), answers.get()
    for process in started:
        process.join()
    return found
