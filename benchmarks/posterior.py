"""A run's folder as a posterior: trained particles, and predictions that are computed once and then stored.

record.json  particles.safetensors  distances.safetensors  logits/SPLIT.safetensors
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bella.checkpoint import load_particles, load_tensors, save_particles, save_tensors
from bella.costs import count_parameters
from bella.diversity import product_distances, weight_distances
from bella.errors import UserError, suggest
from bella.heads import particle_seeds
from bella.particles import Particles, Shard, derive_seed
from bella.predictive import predict
from benchmarks.backbones import build_classifier
from benchmarks.examples import FILE as EXAMPLES
from benchmarks.plan import Run
from benchmarks.problem import Data, Split
from benchmarks.questions import tokenize_questions
from benchmarks.records import FILE as RECORD
from benchmarks.records import check_name
from benchmarks.registries import METHODS
from benchmarks.task import Predictions

PARTICLES = "particles.safetensors"
DISTANCES = "distances.safetensors"
HALF_PRECISION_ABOVE = 10**7
"""Stored logits of more numbers than this are float16."""


def make_particles(
    model: nn.Module,
    method: str,
    seed: int,
    shard: Shard,
    *,
    head: str | None,
    chunk_size: int | None,
    options: Mapping[str, Any],
) -> Particles:
    """A method's particles on a model as they are before training. Those that are drawn are drawn by the run's seed."""
    seeds = particle_seeds(derive_seed("particles", seed), shard.total)[shard.rows]
    particles: Particles = METHODS.resolve(method).particles(
        model, len(seeds), head=head, seeds=seeds, chunk_size=chunk_size, **options
    )
    particles.shard = shard
    return particles


class StoredPosterior:
    """What is learned in one run, backed by its folder.

    Args:
        run: what it is made of.
        folder: its own.
        data: loads the problem's data; called when first needed.
        device: where to compute.
        on_batch: told (examples done, examples in all) while predicting.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        data: Callable[[], Data],
        device: torch.device,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        self.run = run
        self.folder = folder
        self.device = device
        self.average = run.recipe.average
        self.chunk_size = run.chunk_size
        self._data = data
        self._on_batch = on_batch
        self._particles: Particles | None = None
        self.base_parameters = 0
        self.base_bytes = 0

    def data(self) -> Data:
        """The problem's data."""
        return self._data()

    def fresh_particles(self, shard: Shard | None = None) -> Particles:
        """The particles as they are before training, on theta_0 of this run: all, or those of a shard."""
        run, data = self.run, self.data()
        model = build_classifier(
            run.backbone, class_names=data.class_names, image_size=data.image_size, head=run.head, templates=data.templates
        )
        tokenize_questions(data, model.tokenize, run.backbone)
        self.base_parameters, self.base_bytes = count_parameters(model)
        self._particles = make_particles(
            model.to(self.device),
            run.method,
            run.seed,
            shard or Shard.whole(run.particles),
            head="head" if run.head == "trained" else None,
            chunk_size=self.chunk_size,
            options=run.particle_options,
        )
        return self._particles

    def particles(self) -> Particles:
        """The trained particles, from memory or from the folder."""
        if self._particles is None:
            load_particles(self.fresh_particles(), self.folder / PARTICLES)
        assert self._particles is not None
        return self._particles

    def halve_chunks(self) -> bool:
        """Have half as many particles computed at once from now on; False where it is one already."""
        largest = (self.chunk_size or self.run.particles) if self._particles is None else self._particles.chunk_size
        if largest == 1:
            return False
        self.chunk_size = largest // 2
        self._particles = None
        return True

    def store(self, particles: Particles) -> None:
        """Write the trained particles and their distances, dropping what an earlier training of this run has left, its record too.

        Every process of a training calls this; the leading one has all particles from then on.
        """
        if particles.shard.leads:
            # The record first: without one, a process that is killed here leaves a training to go on with, not a mixture of two.
            for stale in (self.folder / RECORD, self.folder / EXAMPLES, *self.folder.glob("logits/*.safetensors")):
                stale.unlink(missing_ok=True)
        save_particles(particles, self.folder / PARTICLES)
        if not particles.shard.leads:
            return
        if particles.shard.total > particles.num_particles:
            self._particles = None
        whole = self.particles()
        save_tensors({"weights": weight_distances(whole), "products": product_distances(whole)}, self.folder / DISTANCES)

    def distances(self) -> dict[str, Tensor]:
        """Distances (n, n) between the trained particles."""
        return load_tensors(self.folder / DISTANCES)

    def predictions(self, split: str, examples: Callable[[], Split] | None = None) -> Predictions:
        """Logits of all particles on a split, or on a task's own examples: from the folder, or computed and stored."""
        path = self.folder / "logits" / f"{check_name(split, 'split')}.safetensors"
        if not path.exists():
            made = self._split(split) if examples is None else examples()
            logits = predict(
                self.particles(),
                made,
                batch_size=max(self.run.recipe.batch_size, 64),
                device=self.device,
                on_batch=self._on_batch,
            )
            ids = torch.frombuffer(bytearray("\n".join(made.ids).encode()), dtype=torch.uint8)
            path.parent.mkdir(parents=True, exist_ok=True)
            half = logits.numel() > HALF_PRECISION_ABOVE
            save_tensors({"logits": logits.half() if half else logits, "targets": made.targets, "ids": ids}, path)
        return read_predictions(path)

    def _split(self, name: str) -> Split:
        data = self.data()
        splits = {"training": data.training, "validation": data.validation, "test": data.test, **data.further}
        if name not in splits:
            raise UserError(f"problem {self.run.problem} has no set {name!r}: {suggest(name, splits)}")
        return splits[name]


def read_predictions(path: Path) -> Predictions:
    """Stored predictions, logits as float32.

    Raises:
        UserError: the file is damaged.
    """
    tensors = load_tensors(path)
    try:
        ids = bytes(tensors["ids"].numpy()).decode().split("\n")
        return Predictions(tensors["logits"].float(), tensors["targets"], ids)
    except (KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not stored predictions ({error}); delete it and run the suite again") from error
