"""What a run would cost, before it is run: exact counts, memory from shapes, operations; or one step of it, measured.

Everything is worked out on the meta device, from the run's own particles and one pass of a batch: no data, no weights, no memory.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bella.costs import Costs, count_costs, count_parameters, peak_memory, resident_bytes
from bella.fit import loss_and_gradients, optimizer_for, train_step
from bella.folding import FanOut
from bella.inference import Independent, Inference
from bella.lowrank import LowRankParticles
from bella.particles import Inputs, Particles, map_inputs
from benchmarks.backbones import Backbone, assemble, parse
from benchmarks.environment import reuse_freed_memory
from benchmarks.onednn import fast_linear
from benchmarks.plan import Run
from benchmarks.registries import METHODS, PROBLEMS

QUESTION_TOKENS = 32
"""Length of a question where only shapes count."""

DEFAULT_CLASSES = 10
"""Outputs of a head where the data are not read."""

DEFAULT_IMAGE_SIZE = 224


@dataclass(frozen=True)
class Estimate:
    """What one run costs, but for what particles that are drawn afterwards take to be drawn.

    Attributes:
        counts: parameters and bytes, exact.
        memory_bytes: estimated peak: theta_0, particles with gradients and optimizer, and what a pass saves for its backward.
        step_operations: floating-point operations of one training step, from the shapes of its products.
    """

    counts: Costs
    memory_bytes: int
    step_operations: int


@dataclass(frozen=True)
class Measured:
    """One training step on random pixels: median seconds, and the peak memory with its source (see `bella.costs`)."""

    step_seconds: float
    memory_bytes: int
    memory_source: str


def estimate(run: Run, *, half_precision: bool) -> Estimate:
    """Costs of a run from shapes alone.

    Args:
        run: planned; its data and weights may be missing.
        half_precision: products in bf16, as on a GPU.
    """
    particles, inputs, base = _set_up(run, torch.device("meta"))
    if isinstance(particles, LowRankParticles):
        # The trial that finds the fan-out compares numbers, and there are none here. Repeating the whole input saves
        # the same tensors for the backward pass: frozen layers in front of the first adapter save nothing.
        particles._fan_out = FanOut(particles.model, None)
        particles.fold_norms(inputs)
    drawn = run.particles * particles.trainable_parameters // particles.num_rows if _rule(run).draws else None
    counts = count_costs(*base, particles.trainable_parameters, run.particles, drawn)
    targets = torch.zeros(particles.num_particles, run.recipe.batch_size, dtype=torch.int64, device="meta")
    particles.zero_gradients()
    with FlopCounterMode(display=False) as counter, _saved_bytes(particles) as saved:
        loss_and_gradients(particles, particles.prepare(inputs), targets)
    # Parameters, gradients and AdamW's two moments, float32 each.
    trained = 4 * 4 * counts.trainable_parameters
    activations = max(saved) if saved else 0
    return Estimate(
        counts, counts.base_bytes + trained + (activations // 2 if half_precision else activations), counter.get_total_flops()
    )


def measure(run: Run, device_name: str, steps: int = 3) -> Measured:
    """Time training steps of a run on random pixels with random weights: neither costs nor memory depend on which.

    On a CPU memory is the process's, less what it held before: call it in a process of its own.
    """
    device = torch.device(device_name)
    reuse_freed_memory()
    resident = resident_bytes()
    particles, inputs, _ = _set_up(run, device)
    rule = _rule(run) if run.particles > 1 else Independent()
    recipe = dataclasses.replace(run.recipe, epochs=1)
    batch = _Random(inputs, recipe.batch_size)
    particles.zero_gradients()
    optimizer = optimizer_for(particles, recipe)
    indices = torch.arange(recipe.batch_size)
    if recipe.minibatches == "per-particle":
        indices = indices.expand(particles.num_particles, -1)
    seconds = []
    with peak_memory(device) as peak:
        for _ in range(steps + 1):
            begun = time.perf_counter()
            with fast_linear(device):
                train_step(particles, rule, batch, indices, recipe, optimizer, device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begun)
    assert peak.bytes is not None
    used = peak.bytes if device.type == "cuda" else peak.bytes - resident
    return Measured(statistics.median(seconds[1:]), used, peak.source)


def product_rate(device_name: str, half_precision: bool) -> float:
    """Operations a second of one large matrix product on a device: what an estimate of time divides by."""
    device = torch.device(device_name)
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if half_precision else torch.float32)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        with fast_linear(device):
            product = F.linear(matrix, matrix)
        float(product[0, 0])  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)


def example_inputs(backbone: Backbone, count: int, image_size: int, device: torch.device) -> Inputs:
    """Random inputs of the kind a backbone takes: pixels, or pixels and a question."""
    image = torch.rand(count, 3, image_size, image_size, device=device).contiguous(memory_format=torch.channels_last)
    if backbone.tokenize is None:
        return image
    tokens = torch.zeros(count, QUESTION_TOKENS, dtype=torch.int64, device=device)
    return {"image": image, "input_ids": tokens, "attention_mask": torch.ones_like(tokens, dtype=torch.bool)}


class _Random:
    """Examples of which every batch is the same random one."""

    def __init__(self, inputs: Inputs, count: int) -> None:
        self._inputs = inputs
        self._count = count
        self.targets = torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return self._count

    def inputs(self, indices: Tensor, device: torch.device) -> Inputs:
        return map_inputs(lambda t: t[indices.to(t.device)], self._inputs)


def _set_up(run: Run, device: torch.device) -> tuple[Particles, Inputs, tuple[int, int]]:
    """A run's particles with random weights, or on the meta device with none; a random batch; numbers and bytes of theta_0."""
    scheme, reference = parse(run.backbone)
    backbone = scheme.build(reference, image_size=_image_size(run), load=False, device=device.type)
    trained = run.head == "trained"
    classes = PROBLEMS.resolve(run.problem)().class_count(run.data_options) or DEFAULT_CLASSES
    head: nn.Module = nn.Linear(backbone.features, classes, device=device) if trained else nn.Identity()
    model = assemble(backbone, head, reference.precision).to(device)
    options: dict[str, Any] = {"head": "head" if trained else None, "seeds": run.seed, "chunk_size": run.chunk_size}
    inputs = example_inputs(backbone, run.recipe.batch_size, _image_size(run), device)
    del backbone  # and with it what the model does without, such as a text tower
    base = count_parameters(model)
    count = _rule(run).trained_particles(run.particles)
    return METHODS.resolve(run.method).particles(model, count, **options, **run.particle_options), inputs, base


def _rule(run: Run) -> Inference:
    return METHODS.resolve(run.method).rule(**run.inference_options)


def _image_size(run: Run) -> int:
    return getattr(run.data_options, "image_size", DEFAULT_IMAGE_SIZE)


@contextmanager
def _saved_bytes(particles: Particles) -> Iterator[list[int]]:
    """Bytes that are saved for the backward, each tensor once, parameters apart: a total after every tensor that is saved."""
    own = {tensor.untyped_storage()._cdata for tensor in [*particles.parameters(), *particles.buffers()]}
    alive: dict[int, int] = {}
    totals: list[int] = []

    class _Saved:
        """One saved tensor; forgotten when autograd lets go of it, at the end of its chunk's backward."""

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            storage = tensor.untyped_storage()
            self.key = storage._cdata
            if self.key not in own:
                alive[self.key] = storage.nbytes()
                totals.append(sum(alive.values()))

        def __del__(self) -> None:
            alive.pop(self.key, None)

    with torch.autograd.graph.saved_tensors_hooks(_Saved, lambda saved: saved.tensor):
        yield totals
