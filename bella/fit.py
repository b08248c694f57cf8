"""The one training loop: every method goes through it."""

from __future__ import annotations

import contextlib
import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bella.data import Examples
from bella.errors import UserError
from bella.features import FeatureCache
from bella.inference import Inference
from bella.particles import Particles, derive_seed, map_inputs
from bella.predictive import autocast, log_predictive, predict
from bella.resume import Checkpoints, Epoch, History, Standing, check_finite
from bella.sharding import OnAllParticles


@dataclass(frozen=True)
class Recipe:
    """How to train. The same for every method; what is None follows the parameterisation.

    Attributes:
        epochs: passes over the training split.
        batch_size: b, examples a step and particle.
        learning_rate: a number, one a particle, or None for the parameterisation's own.
        warmup: share of all steps in which the rate rises linearly; a cosine to 0 follows.
        warmup_steps: the same as a number of steps; it has precedence.
        weight_decay: AdamW's decoupled decay, apart from the prior. 0 unless a recipe sets it.
        clip_norm: largest norm of one particle's gradient, after the transform; None: no clipping.
        prior_std: of the Gaussian prior on what trains, around theta_0 (full-rank) or 0 (factors, heads).
        minibatches: "shared" by all particles, or drawn "per-particle".
        average: what is averaged over particles to predict, "probabilities" or "logits".
    """

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float | tuple[float, ...] | None = None
    warmup: float = 0.1
    warmup_steps: int | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    prior_std: float = 1.0
    minibatches: Literal["shared", "per-particle"] = "shared"
    average: Literal["probabilities", "logits"] = "probabilities"

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        rates = self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate or 1.0,)
        checks = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "learning_rate": all(0 < rate < math.inf for rate in rates),
            "warmup": 0 <= self.warmup <= 1,
            "warmup_steps": self.warmup_steps is None or self.warmup_steps >= 0,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip_norm": self.clip_norm is None or self.clip_norm > 0,
            "prior_std": self.prior_std > 0,
        }
        for name, fine in checks.items():
            if not fine:
                raise UserError(f"{name} is {getattr(self, name)}: out of range")


OnStep = Callable[[int, int, float], None]
"""Told (steps done, steps in all, learning rate of the step as a share of the peak)."""


def fit(
    particles: Particles,
    inference: Inference,
    training: Examples,
    validation: Examples,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    on_step: OnStep | None = None,
) -> History:
    """Train all particles and leave them as they were after the best epoch, by validation NLL of the averaged prediction.

    Each step descends U = mean NLL - log prior / N: gradients of every chunk of particles, the prior's, the inference
    rule's transform, clipping per particle, AdamW. With checkpoints a training that was killed goes on from the last one and
    ends with the numbers of an undisturbed one; they are the caller's to clear, once the particles are stored. Where the particles
    are a process's share of all, every process calls this, and the others' arguments are the same but for the particles.

    Raises:
        UserError: the loss is no longer finite, or the rates do not fit the particles.
        OSError: a checkpoint, or the best epoch, cannot be written.
    """
    steps_an_epoch = math.ceil(len(training) / recipe.batch_size)
    total_steps = recipe.epochs * steps_an_epoch
    warmup = round(recipe.warmup * total_steps) if recipe.warmup_steps is None else recipe.warmup_steps
    particles.zero_gradients()
    optimizer = optimizer_for(particles, recipe)
    if (inference.draws or inference.pushes_predictions) and particles.shard.total > particles.num_particles:
        raise UserError(f"{type(inference).__name__} needs all particles in one process")
    if inference.couples and particles.shard.total > particles.num_particles:
        inference = OnAllParticles(inference, particles)
    peaks = [group["lr"] for group in optimizer.param_groups]
    # Worth its memory only if some epoch comes back to an example.
    features, unseen = (FeatureCache(particles, split, device) if recipe.epochs > 1 else None for split in (training, validation))
    with contextlib.ExitStack() as until_done:
        if checkpoints is None:
            folder = until_done.enter_context(tempfile.TemporaryDirectory(prefix="bella-"))
            checkpoints = Checkpoints(Path(folder), seconds=math.inf)
        standing = checkpoints.restore(particles, optimizer, inference) or Standing(
            torch.zeros((), device=device, dtype=torch.float64)
        )
        history = standing.history
        first_epoch = len(history.epochs)
        if features is not None and (first_epoch or standing.steps):
            # Features do not depend on the batch an example came in but for rounding, and resumed numbers are to be the same.
            seen = _minibatches(particles, training, recipe, seed, 0)
            with autocast(device):
                features.fill(seen if first_epoch else seen[: standing.steps])
        for epoch in range(first_epoch, recipe.epochs):
            begun = time.perf_counter() - standing.seconds
            for step, indices in enumerate(_minibatches(particles, training, recipe, seed, epoch)):
                if step < standing.steps:
                    continue
                done = epoch * steps_an_epoch + step
                rate = inference.learning_rate(done, warmup, total_steps)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = rate * peak
                _seed_random_numbers(seed, done)
                inference.begin_step(done, total_steps)
                standing.loss_sum += train_step(particles, inference, training, indices, recipe, optimizer, device, features)
                inference.end_step(particles, done, total_steps)
                standing.steps = step + 1
                if on_step is not None:
                    on_step(done + 1, total_steps, rate)
                if standing.steps < steps_an_epoch and checkpoints.due(particles):
                    standing.seconds = time.perf_counter() - begun
                    checkpoints.save(standing, particles, optimizer, inference)
                    begun = time.perf_counter() - standing.seconds
            training_nll = float(particles.shard.mean(standing.loss_sum)) / steps_an_epoch
            history.train_seconds += time.perf_counter() - begun
            history.examples += len(training)
            check_finite(training_nll, epoch)
            nll = validation_nll(particles, validation, recipe, device, unseen)
            check_finite(nll, epoch, "validation")
            history.epochs.append(Epoch(training_nll, nll, time.perf_counter() - begun))
            standing.steps, standing.seconds, standing.loss_sum = 0, 0.0, torch.zeros((), device=device, dtype=torch.float64)
            if epoch == 0 or nll < history.epochs[history.best_epoch].validation_nll:
                history.best_epoch = epoch
                if epoch + 1 < recipe.epochs:
                    checkpoints.keep_best(particles, epoch)
            if epoch + 1 < recipe.epochs and checkpoints.due(particles):
                checkpoints.save(standing, particles, optimizer, inference)
        if history.best_epoch + 1 < recipe.epochs:
            checkpoints.load_best(particles, history.best_epoch)
    return history


def _seed_random_numbers(seed: int, step: int) -> None:
    """Give each step random numbers of its own: a training that goes on from a checkpoint then needs no generator's state."""
    own = derive_seed(seed, "step", step)
    torch.manual_seed(own)
    random.seed(own)


def train_step(
    particles: Particles,
    inference: Inference,
    training: Examples,
    indices: Tensor,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    features: FeatureCache | None = None,
) -> Tensor:
    """One step on the examples with the given indices, (b,) shared or (n, b) per particle. Returns the mean NLL of a particle.

    `features` keeps what all particles share of the training split from epoch to epoch.
    """
    particles.train()
    per_particle = indices.dim() == 2
    targets = training.targets[indices].to(device, non_blocking=True).expand(particles.num_particles, -1)
    with autocast(device):
        if features is not None and not per_particle:
            prepared = features.prepare(indices)
        else:
            inputs = training.inputs(indices.flatten(), device)
            if per_particle:
                inputs = map_inputs(lambda t: t.unflatten(0, tuple(indices.shape)), inputs)
            prepared = particles.prepare(inputs, per_particle=per_particle)
    particles.zero_gradients()
    loss = loss_and_gradients(particles, prepared, targets, inference, len(training))
    particles.add_prior_gradient(recipe.prior_std, len(training))
    inference.transform(particles, len(training))
    if recipe.clip_norm is not None:
        clip_gradients(particles, recipe.clip_norm)
    optimizer.step()
    return loss


def loss_and_gradients(
    particles: Particles, prepared: Any, targets: Tensor, inference: Inference | None = None, training_size: int = 1
) -> Tensor:
    """Add the gradient of each particle's own mean NLL to its gradients, chunk by chunk; returns the mean over particles.

    Where particles share a row of the storage, that row gets the mean of their gradients.

    Args:
        particles: with gradients zeroed.
        prepared: a batch, as `Particles.prepare` gives it.
        targets: (n, b).
        inference: may push predictions apart.
        training_size: N.
    """
    total = torch.zeros((), device=targets.device, dtype=torch.float64)
    chunks = list(particles.training_chunks())
    computed = sum(rows.stop - rows.start for rows in chunks)
    pushing = inference if inference is not None and inference.pushes_predictions else None
    push = None
    if pushing is not None and len(chunks) > 1:  # all predictions must be known before the first backward
        with torch.no_grad(), autocast(targets.device):
            everyone = torch.cat([particles.chunk_logits(prepared, rows) for rows in chunks])
        push = pushing.prediction_gradient(everyone, training_size)
    for rows in chunks:
        with autocast(targets.device):
            logits = particles.chunk_logits(prepared, rows)
        logits.register_hook(_without_negligible)
        own = targets[rows]
        loss = F.cross_entropy(
            logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), own.flatten(), reduction="sum"
        )
        loss = loss / own.shape[1]
        total += loss.detach()
        if pushing is not None:
            pushed = pushing.prediction_gradient(logits.detach(), training_size) if push is None else push[rows]
            loss = loss + (logits * pushed).sum()
        (loss * (particles.num_rows / computed)).backward()
    return total / computed


def _without_negligible(gradient: Tensor) -> Tensor:
    """A logit gradient with what is below 1e-20 set to 0.

    A confident network's is full of such numbers, which layer by layer become denormal, and processors handle those many
    times slower than others: the last epochs of a full-rank training on digits took 1.5 times as long.
    """
    return gradient.masked_fill(gradient.abs() < 1e-20, 0.0)


def clip_gradients(particles: Particles, largest: float) -> None:
    """Scale each particle's gradient to a norm of at most `largest`, in place, each by its own."""
    gradients = [stored.grad for stored in particles.storage if stored.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    factors = (largest / torch.linalg.vector_norm(norms, dim=0).clamp_min(1e-12)).clamp_max(1.0)
    for gradient in gradients:
        gradient *= factors.view(-1, *[1] * (gradient.dim() - 1)).to(gradient.dtype)


def validation_nll(
    particles: Particles, validation: Examples, recipe: Recipe, device: torch.device, features: FeatureCache | None = None
) -> float:
    """NLL of the averaged prediction, nats an example."""
    particles.eval()
    logits = predict(particles, validation, batch_size=max(recipe.batch_size, 64), device=device, features=features)
    logits = particles.shard.gather(logits)
    return float(F.nll_loss(log_predictive(logits.double(), recipe.average), validation.targets))


def optimizer_for(particles: Particles, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over the storage; with a rate for each particle, over each particle's share of it."""
    rate = particles.default_learning_rate if recipe.learning_rate is None else recipe.learning_rate
    groups: list[dict[str, object]]
    if isinstance(rate, tuple):
        if len(rate) != particles.total_rows:
            raise UserError(f"learning_rate has {len(rate)} numbers for {particles.total_rows} particles: give one, or one each")
        own_rates = rate if particles.shares_rows else rate[particles.shard.rows]
        groups = [{"params": particles.rows(index), "lr": own} for index, own in enumerate(own_rates)]
    else:
        groups = [{"params": list(particles.storage), "lr": rate}]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)


def _minibatches(particles: Particles, training: Examples, recipe: Recipe, seed: int, epoch: int) -> list[Tensor]:
    """Indices of one epoch's batches, (b,) shared or (n, b): a fresh order each epoch, from the seed alone."""

    def order(*source: object) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(*source, "order", epoch))
        return torch.randperm(len(training), generator=generator)

    if recipe.minibatches == "shared":
        return list(order(seed).split(recipe.batch_size))
    return list(torch.stack([order(own) for own in particles.seeds]).split(recipe.batch_size, dim=1))
