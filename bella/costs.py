"""What a posterior costs: parameters and bytes, exactly; peak memory, measured."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Costs:
    """Counts of one posterior.

    Attributes:
        total_parameters: of theta_0, once (its head included).
        trainable_parameters: all that trains, with the trained heads, where there are any.
        trainable_parameters_per_particle: that over n.
        ratio: per particle / total.
        stored_bytes: all particles on disk, without theta_0.
        base_bytes: theta_0.
    """

    total_parameters: int
    trainable_parameters_per_particle: int
    trainable_parameters: int
    ratio: float
    stored_bytes: int
    base_bytes: int


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(numbers, bytes) of a module's parameters, shared ones once.

    Weights in 4 bits stand two to a byte, uint8, and 64 of them share one float32 factor.
    """
    numbers = size = 0
    for p in model.parameters():
        packed = p.dtype == torch.uint8
        numbers += 2 * p.numel() if packed else p.numel()
        size += p.numel() * p.element_size() + (-(-p.numel() // 32) * 4 if packed else 0)
    return numbers, size


def count_costs(
    total_parameters: int, base_bytes: int, trainable_parameters: int, num_particles: int, stored_numbers: int | None = None
) -> Costs:
    """Costs from counts; numbers are stored as float32, and all that trains is stored unless told otherwise."""
    return Costs(
        total_parameters=total_parameters,
        trainable_parameters_per_particle=round(trainable_parameters / num_particles),
        trainable_parameters=trainable_parameters,
        ratio=trainable_parameters / num_particles / total_parameters,
        stored_bytes=4 * (trainable_parameters if stored_numbers is None else stored_numbers),
        base_bytes=base_bytes,
    )


@dataclass
class PeakMemory:
    """The most memory in use during a block, and how it was measured.

    Attributes:
        bytes: None until the block ends.
        source: "gpu-allocator", "resident-set" (this process, reset before the block), or "resident-set-since-start"
            (where it cannot be reset).
    """

    bytes: int | None = None
    source: str = ""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of a block: the allocator's on a GPU, the process's high-water mark on a CPU."""
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes, peak.source = torch.cuda.max_memory_allocated(device), "gpu-allocator"
        return
    was_reset = _reset_high_water_mark()
    yield peak
    if was_reset and (mark := _high_water_mark()) is not None:
        peak.bytes, peak.source = mark, "resident-set"
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak.bytes, peak.source = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident-set-since-start"


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_bytes() -> int:
    """What this process holds now; 0 where the system does not tell."""
    return _status("VmRSS:") or 0


def _high_water_mark() -> int | None:
    return _status("VmHWM:")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)
