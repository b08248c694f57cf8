"""`bella scaling`: what a step of n particles costs on how many devices, from costs measured here, and where more stop paying.

A step on R devices is

    fixed + ceil(n / R) * particle  +  3 * latency + 2 * (R - 1) / R * (4 n d + 8 n^2) / bandwidth  +  rule(n) / R

with forward and backward passes of a device's particles, the gathers of all numbers and all gradients and the sum of distances
(bella/sharding.py), and a device's share of the inference rule on all n. fixed and particle come from steps of two sizes, rule(n)
from the rule on n particles, latency and bandwidth from gathers between processes on this machine, or are given.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import shlex
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bella.errors import UserError
from benchmarks import environment, speed
from benchmarks.speed import Setting
from benchmarks.tables import BYTE_UNITS, format_units

WORTH_DOUBLING = 1.25
"""Twice the devices pay where a step becomes at least so many times as fast."""
_SAMPLE_BYTES = 64 * 2**20
_GATHERS = 5


@dataclass(frozen=True)
class Measured:
    """Costs of one device and of the way between devices.

    Attributes:
        fixed: seconds of a step that do not depend on the number of particles.
        particle: seconds of a step, for each particle.
        rule: seconds of the inference rule on all particles.
        latency: seconds of a gather of nothing.
        bandwidth: bytes a second that a process receives in a gather.
        gathered_bytes: numbers of all particles, once.
    """

    fixed: float
    particle: float
    rule: float
    latency: float
    bandwidth: float
    gathered_bytes: int

    def step(self, particles: int, devices: int) -> dict[str, float]:
        """Seconds of a step on so many devices, and of its parts."""
        passes = self.fixed + math.ceil(particles / devices) * self.particle
        received = 2 * (devices - 1) / devices * (self.gathered_bytes + 8 * particles**2)
        gather = 0.0 if devices == 1 else 3 * self.latency + received / self.bandwidth
        rule = self.rule / devices
        return {"passes": passes, "gather": gather, "rule": rule, "step": passes + gather + rule}


def scaling(setting: Setting, devices: Sequence[int], repeats: int, bandwidth: float | None) -> dict[str, Any]:
    """The costs of a step on each number of devices.

    Args:
        setting: what is measured; `particles` is n, `chunk_size` how many a device computes at once.
        devices: numbers R, in any order.
        repeats: of each measurement, of which the median is taken.
        bandwidth: bytes a second between devices; None: measured here, between two processes.

    Raises:
        UserError: a number of devices is not between 1 and n.
    """
    for count in devices:
        if not 1 <= count <= setting.particles:
            raise UserError(f"--devices {count}: between 1 and the {setting.particles} particles")
    environment.reuse_freed_memory()
    few = min(setting.chunk_size or 5, setting.particles)
    gather = _gather_costs(setting.device)
    once, twice = (_step_seconds(dataclasses.replace(setting, particles=count), repeats) for count in (few, 2 * few))
    particle = max(twice - once, 0.0) / few
    measured = Measured(
        fixed=max(once - few * particle, 0.0),
        particle=particle,
        rule=speed.svgd_seconds(setting, repeats),
        latency=gather[0],
        bandwidth=gather[1] if bandwidth is None else bandwidth,
        gathered_bytes=4 * setting.particles * speed.numbers_of_a_particle(setting),
    )
    rows = [{"devices": count, **measured.step(setting.particles, count)} for count in sorted(devices)]
    return {
        "command": _command(setting, devices, repeats, bandwidth),
        "setting": dataclasses.asdict(setting),
        "measured": dataclasses.asdict(measured),
        "rows": rows,
        "pays_up_to": pays_up_to(measured, setting.particles),
        "environment": environment.describe(torch.device(setting.device)),
    }


def pays_up_to(measured: Measured, particles: int) -> int:
    """The most devices, a power of two, that are still `WORTH_DOUBLING` times as fast as half of them."""
    devices = 1
    while 2 * devices <= particles:
        if measured.step(particles, devices)["step"] < WORTH_DOUBLING * measured.step(particles, 2 * devices)["step"]:
            break
        devices *= 2
    return devices


def scaling_lines(found: dict[str, Any]) -> list[str]:
    """A Markdown table of the rows, and what they were made from."""
    setting, measured, machine = found["setting"], found["measured"], found["environment"]
    n = setting["particles"]
    alone = Measured(**measured).step(n, 1)["step"]
    titles = ("devices", "particles each", "passes (s)", "gathers (s)", "SVGD (s)", "step (s)", "times as fast")
    lines = [f"| {' | '.join(titles)} |", "|--:|--:|--:|--:|--:|--:|--:|"]
    for row in found["rows"]:
        parts = " | ".join(f"{row[name]:.3g}" for name in ("passes", "gather", "rule", "step"))
        lines.append(f"| {row['devices']} | {math.ceil(n / row['devices'])} | {parts} | {alone / row['step']:.1f} |")
    where = machine["device"] if machine["device"] != "cpu" else f"{machine['processor']}, {machine['threads']} threads"
    return [
        *lines,
        "",
        f"{setting['backbone']}, n = {n}, b = {setting['batch_size']}, r = {setting['rank']}. Measured on {where}: "
        f"{measured['particle']:.3g} s a particle and {measured['fixed']:.3g} s a step; {measured['rule']:.3g} s SVGD on all; "
        f"{format_units(measured['gathered_bytes'], BYTE_UNITS)} gathered, twice, at {measured['bandwidth'] / 1e9:.3g} GB/s. "
        f"Doubling devices makes a step at least {WORTH_DOUBLING} times as fast up to {found['pays_up_to']}.",
    ]


def _command(setting: Setting, devices: Sequence[int], repeats: int, bandwidth: float | None) -> str:
    words = ["bella", "scaling", setting.backbone, "--particles", setting.particles, "--batch-size", setting.batch_size]
    words += ["--rank", setting.rank, "--image-size", setting.image_size, "--devices", ",".join(map(str, devices))]
    words += ["--chunk-size", setting.chunk_size] if setting.chunk_size else []
    words += ["--bandwidth", f"{bandwidth / 1e9:g}"] if bandwidth else []
    return shlex.join(str(word) for word in [*words, "--repeats", repeats])


def _step_seconds(setting: Setting, repeats: int) -> float:
    """A training step of independent particles: the rule is measured apart."""
    device = torch.device(setting.device)
    once = speed.independent(setting)
    return statistics.median([speed.seconds_of(once, device) for _ in range(repeats + 1)][1:])


def _gather_costs(device: str) -> tuple[float, float]:
    """(seconds of an empty gather, bytes a second received) between two processes: GPUs where there are two, else cores."""
    on_gpus = device == "cuda" and torch.cuda.device_count() > 1
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bella-") as folder:
        answers = context.SimpleQueue()
        meeting = str(Path(folder) / "meeting")
        started = [context.Process(target=_gather_in, args=(rank, meeting, on_gpus, answers), daemon=True) for rank in range(2)]
        for process in started:
            process.start()
        small, large = answers.get()
        for process in started:
            process.join()
    return small, _SAMPLE_BYTES / 2 / max(large - small, 1e-9)


def _gather_in(rank: int, meeting: str, on_gpus: bool, answers: Any) -> None:
    """One of two processes that gather: medians of the seconds of a tiny and of a large gather."""
    dist.init_process_group("nccl" if on_gpus else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    medians = []
    for count in (1, _SAMPLE_BYTES // 8):  # of each process, float32
        own = torch.zeros(count, device=device)
        parts = [torch.empty_like(own) for _ in range(2)]
        taken = []
        for _ in range(_GATHERS + 1):
            begun = time.perf_counter()
            dist.all_gather(parts, own)
            if on_gpus:
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - begun)
        medians.append(statistics.median(taken[1:]))
    if rank == 0:
        answers.put(tuple(medians))
    dist.destroy_process_group()
