"""Call a function in a process of its own: what it allocates, and what it leaves behind, is no one else's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from bella.errors import UserError

T = TypeVar("T")

# Workers are forked from a server that has imported these and run nothing: no import time, no memory of earlier work.
_PRELOADED = ["torch", "benchmarks.backbones", "baselines.full_rank", "benchmarks.estimate"]


def call_isolated(function: Callable[..., T], *args: Any) -> T:
    """The function's result; it must be importable, and its arguments and result must pickle.

    Raises:
        UserError: the process died, as one does that asks for more memory than there is.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise UserError(f"{function.__name__}: its process died, most likely for want of memory") from error
