"""A training that can be taken up again: where it stands, in at most one checkpoint and one best epoch on disk."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bella.checkpoint import load_particles, load_tensors, save_particles, save_tensors
from bella.errors import UserError
from bella.inference import Inference
from bella.particles import Particles

CHECKPOINT = "training.safetensors"
FORMAT = "bella-training/2"
LARGEST_SHARE = 0.05
"""Of the time of a training that writing checkpoints may take."""


@dataclass
class Epoch:
    """What one pass over the training split gave: mean training NLL of a particle, validation NLL of the average, seconds."""

    training_nll: float
    validation_nll: float
    seconds: float


@dataclass
class History:
    """A training: its epochs, which was kept (counted from 0), and how long training steps and validation took."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    train_seconds: float = 0.0
    examples: int = 0


@dataclass
class Standing:
    """How far a training has come.

    Attributes:
        steps: done in the epoch in hand.
        loss_sum: of those steps; a tensor, so that no step waits for the device.
        seconds: they took.
        history: of the epochs before.
    """

    loss_sum: Tensor
    steps: int = 0
    seconds: float = 0.0
    history: History = field(default_factory=History)


@dataclass
class _Read:
    """A checkpoint's content: this process's rows of the storage and of the optimizer's state, and what the rule remembers."""

    standing: Standing
    storage: list[Tensor]
    optimizer: list[dict[str, Tensor]]
    remembered: dict[str, Tensor]


class Checkpoints:
    """Checkpoints of one training, each in the place of the one before.

    A checkpoint is one file: parameters, the optimizer's and the inference rule's state, and how far the training has come. The
    learning rate, the order of the data and the random numbers of a step follow from the seed and the number of the step.

    Args:
        folder: where they lie; nobody else writes there.
        seconds: between checkpoints, and more where writing one takes long (`LARGEST_SHARE`).
    """

    def __init__(self, folder: Path, seconds: float = 60.0) -> None:
        self._folder = folder
        self._seconds = seconds
        self._next = time.perf_counter() + seconds
        self._referred: int | None = None  # the best epoch that the checkpoint on disk goes on with

    def due(self, particles: Particles) -> bool:
        """Whether it is time for one; all processes agree."""
        return particles.shard.decide(time.perf_counter() >= self._next)

    def save(self, standing: Standing, particles: Particles, optimizer: torch.optim.Optimizer, inference: Inference) -> None:
        """Write one, of all processes' particles.

        Raises:
            UserError: the loss is no longer finite: there is nothing to go on from.
            OSError: it cannot be written.
        """
        begun = time.perf_counter()
        shard = particles.shard
        loss_sum = shard.mean(standing.loss_sum)
        check_finite(float(loss_sum), len(standing.history.epochs))
        told = {"steps": standing.steps, "seconds": standing.seconds, "history": dataclasses.asdict(standing.history)}
        tensors = {"standing": _from_text(json.dumps(told)), "loss_sum": loss_sum}
        tensors |= {f"storage/{index}": shard.gather(stored) for index, stored in enumerate(particles.storage)}
        tensors |= {f"inference/{name}": tensor for name, tensor in inference.state().items()}
        for index, state in enumerate(_stacked_state(optimizer, len(particles.storage))):
            for name, tensor in state.items():
                tensors[f"optimizer/{index}/{name}"] = shard.gather(tensor) if tensor.dim() else tensor
        if shard.leads:
            save_tensors(tensors, self._folder / CHECKPOINT, {"format": FORMAT})
            self._referred = standing.history.best_epoch
            self._drop_best_but(self._referred)
        shard.everyone_done()
        now = time.perf_counter()
        self._next = now + max(self._seconds, (now - begun) / LARGEST_SHARE)

    def restore(self, particles: Particles, optimizer: torch.optim.Optimizer, inference: Inference) -> Standing | None:
        """Take up the checkpoint; None where there is none, or only a damaged one, which is removed: the training begins anew.

        All processes take it up, or none does.
        """
        path = self._folder / CHECKPOINT
        read = None
        if path.exists():
            try:
                read = self._read(load_tensors(path, FORMAT), particles)
            except (UserError, KeyError, ValueError, TypeError, RuntimeError) as error:
                warnings.warn(f"{path} cannot be gone on from, the training begins anew: {error}", stacklevel=2)
        if not particles.shard.agree(read is not None):
            if particles.shard.leads:
                self.clear()
            return None
        assert read is not None
        _restore_state(optimizer, read.optimizer)
        inference.restore(read.remembered)
        with torch.no_grad():
            for new, old in zip(read.storage, particles.storage, strict=True):
                old.copy_(new)
        self._referred = read.standing.history.best_epoch
        return read.standing

    def _read(self, tensors: dict[str, Tensor], particles: Particles) -> _Read:
        """What a checkpoint says of these particles; nothing is changed.

        Raises:
            UserError, KeyError, ValueError, TypeError: it is of other particles, or says too little.
        """
        told = json.loads(bytes(tensors["standing"].numpy()))
        history = told["history"]
        history = History(**{**history, "epochs": [Epoch(**epoch) for epoch in history["epochs"]]})
        if history.epochs:
            load_tensors(self._best(history.best_epoch))  # refuses one that is gone or damaged
        rows = slice(None) if particles.shares_rows else particles.shard.rows
        states: list[dict[str, Tensor]] = [{} for _ in particles.storage]
        remembered = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                index, _, key = rest.partition("/")
                states[int(index)][key] = tensor[rows] if tensor.dim() else tensor
            elif kind == "inference":
                remembered[rest] = tensor.to(particles.storage[0].device)
        stored = [tensors[f"storage/{index}"] for index in range(len(particles.storage))]
        for new, old in zip(stored, particles.storage, strict=True):
            if new.shape != (particles.total_rows, *old.shape[1:]):
                raise UserError("a checkpoint of other particles")
        loss_sum = tensors["loss_sum"].to(particles.storage[0].device)
        standing = Standing(loss_sum, told["steps"], told["seconds"], history)
        return _Read(standing, [tensor[rows] for tensor in stored], states, remembered)

    def keep_best(self, particles: Particles, epoch: int) -> None:
        """Store the particles of the best epoch so far. Those of the best before stay while a checkpoint refers to them."""
        save_particles(particles, self._best(epoch))
        if particles.shard.leads:
            self._drop_best_but(epoch, self._referred)

    def load_best(self, particles: Particles, epoch: int) -> None:
        """Take up the particles of the best epoch."""
        load_particles(particles, self._best(epoch))

    def clear(self) -> None:
        """Remove everything: the training is done, or cannot be gone on with."""
        (self._folder / CHECKPOINT).unlink(missing_ok=True)
        self._drop_best_but()

    def _best(self, epoch: int) -> Path:
        return self._folder / f"best-{epoch}.safetensors"

    def _drop_best_but(self, *epochs: int | None) -> None:
        kept = [self._best(epoch) for epoch in epochs if epoch is not None]
        for path in self._folder.glob("best-*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)


def _stacked_state(optimizer: torch.optim.Optimizer, tensors: int) -> list[dict[str, Tensor]]:
    """The optimizer's state of each storage tensor, (k, ...), whether it steps them whole or a particle at a time."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stacked = []
    for index in range(tensors):
        own = [optimizer.state[parameter] for parameter in parameters[index::tensors]]
        stacked.append({name: torch.cat([s[name] for s in own]) if first.dim() else first for name, first in own[0].items()})
    return stacked


def _restore_state(optimizer: torch.optim.Optimizer, stacked: list[dict[str, Tensor]]) -> None:
    """The inverse of `_stacked_state`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    particles = len(parameters) // len(stacked)
    states = {}
    for number in range(len(parameters)):
        particle, index = divmod(number, len(stacked))
        rows = slice(particle, particle + 1) if particles > 1 else slice(None)
        # Clones: a counter of steps that several parameters shared would count for each of them.
        states[number] = {name: tensor[rows] if tensor.dim() else tensor.clone() for name, tensor in stacked[index].items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def check_finite(loss: float, epoch: int, split: str = "training") -> None:
    """Refuse a loss that is not finite.

    Raises:
        UserError: names the epoch (counted from 0) and the way out.
    """
    if not math.isfinite(loss):
        raise UserError(f"the {split} loss became {loss} in epoch {epoch + 1}: lower learning_rate")


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
