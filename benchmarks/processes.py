"""One suite on several processes of `torchrun`, each with a device: they share the particles of a training, run after run.

The leading process does what one process does; the others wait for trainings and take their share of each. Evaluation, records
and tables are the leading process's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from bella.errors import UserError
from bella.sharding import process_count, tell
from benchmarks.plan import Run
from benchmarks.progress import Progress
from benchmarks.runner import Workplace, shares_training, train_share

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: evaluations, which are the leading one's alone, may take long."""

_END = -1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; nothing to do where it did not."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def leads() -> bool:
    """Whether this process does the runs; the others only help."""
    return int(os.environ.get("RANK", "0")) == 0


def summon(run: Run) -> None:
    """Have the other processes take their share of a training, unless it cannot be shared."""
    if shares_training(run):
        tell(_number(run))


def dismiss() -> None:
    """Tell the other processes that all is done."""
    if process_count() > 1:
        tell(_END)


def help_with(runs: Sequence[Run], workplace: Workplace, progress: Progress) -> None:
    """Take a share of each training, until dismissed."""
    numbered = {_number(run): run for run in runs}
    while (number := tell(_END)) != _END:
        try:
            train_share(numbered[number], workplace)
        except UserError as error:  # every process meets it, and the leading one records it
            progress.says(f"{numbered[number].title}: process {dist.get_rank()}: {error}")


def _number(run: Run) -> int:
    return int(run.hash, 16)
