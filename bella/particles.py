"""What every parameterisation of a particle posterior offers, and how its parameters are stored.

A posterior is n particles. Everything that trains is stored with a leading particle axis, (n, ...), once: the
computation works on views of that storage, and their gradients are views of one gradient storage. So the optimizer and
SVGD see a few large tensors, and no second copy of parameters or gradients ever exists.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import UserError

# The factors of low-rank particles are views of one (n, d) buffer, and their gradients views of another: autograd adds to
# them in place, which is the point, and warns once that they are not contiguous.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

Inputs = Tensor | Mapping[str, Tensor]
"""One batch: a tensor (b, ...), or a dict of them (an image and a tokenized question)."""


def map_inputs(function: Any, inputs: Any) -> Any:
    """Apply a function to every tensor of a batch."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {key: function(value) for key, value in inputs.items()}


def batch_length(inputs: Inputs) -> int:
    """The number of examples in a batch: the length of the first axis."""
    tensor = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return int(tensor.shape[0])


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from anything that names a stream of random numbers; the same parts give the same seed everywhere."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class _Slot:
    """Where one stacked parameter lives: which storage tensor, and which columns of it (None: all of it).

    A convolution's kernels are stored channels-last, (n, out, kh, kw, in): each step runs twice as fast on a CPU.
    """

    storage: int
    columns: slice | None
    shape: tuple[int, ...]
    channels_last: bool = False


@dataclass(frozen=True)
class Shard:
    """Which of all n particles these are. In one process: all. `bella/sharding.py` splits them over several.

    Attributes:
        total: n.
        rows: of these particles among all.
    """

    total: int
    rows: slice

    @classmethod
    def whole(cls, num_particles: int) -> Shard:
        """All of them."""
        return cls(num_particles, slice(0, num_particles))

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return True

    def gather(self, own: Tensor) -> Tensor:
        """(k, ...) of every process -> (n, ...)."""
        return own

    def mean(self, own: Tensor) -> Tensor:
        """The mean over all particles of what is a mean over each process's."""
        return own

    def decide(self, own: bool) -> bool:
        """What the leading process has decided."""
        return own

    def columns(self, width: int) -> slice:
        """This process's share of a sum over so many columns of stacked numbers."""
        return slice(0, width)

    def sum(self, own: Tensor) -> Tensor:
        """The sum of what each process has."""
        return own

    def agree(self, own: bool) -> bool:
        """Whether it holds on every process."""
        return own

    def everyone_done(self) -> None:
        """Wait for all processes."""


class Particles(nn.Module, ABC):
    """n particles over one shared, frozen theta_0.

    Subclasses declare what trains (`_allocate`) and compute logits for a run of neighbouring particles (`_logits`).

    Where particles share what trains (the draws of one variational posterior, say), the storage has fewer rows than there are
    particles: one, or as many as there are things of that kind.

    Args:
        num_particles: n.
        chunk_size: how many particles are computed at once; results do not depend on it beyond rounding.
        seeds: one a particle: all that is random about particle i comes from its own.
        num_rows: of the storage; None: n, each particle's own.
    """

    default_learning_rate: float
    shares_rows = False
    """Whether the storage has fewer rows than there are particles: those cannot be split over processes."""
    scale = 1.0
    """What a product of two factors is multiplied by, where it changes a weight."""

    def __init__(self, num_particles: int, chunk_size: int, seeds: Sequence[int], num_rows: int | None = None) -> None:
        super().__init__()
        self.training = False
        if num_particles < 1:
            raise UserError(f"num_particles is {num_particles}: at least 1 is needed")
        if chunk_size < 1:
            raise UserError(f"chunk_size is {chunk_size}: at least 1 is needed")
        self.num_particles = num_particles
        self.num_rows = num_particles if num_rows is None else num_rows
        self.chunk_size = min(chunk_size, num_particles)
        self.seeds = tuple(seeds)
        self.shard = Shard.whole(num_particles)
        self.storage = nn.ParameterList()
        self._slots: dict[str, _Slot] = {}
        self._leaves: dict[tuple[int, int], dict[str, Tensor]] = {}

    # ---- storage -------------------------------------------------------------------------------------------------

    def _allocate(self, shapes: Mapping[str, Sequence[int]], *, one_buffer: bool, device: torch.device, dtype: torch.dtype) -> None:
        """Make the storage for named parameters of the given per-particle shapes.

        Args:
            shapes: name -> shape of one particle's parameter.
            one_buffer: all of them as columns of one (n, d) tensor, which turns a step of the optimizer or of SVGD into
                a handful of kernels; otherwise a tensor each (full-rank: d is 88 M a particle for CLIP).
            device: where.
            dtype: of what; trained numbers are float32 or float64, whatever theta_0 is held in.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        if one_buffer:
            start = 0
            for name, shape in shapes.items():
                stop = start + torch.Size(shape).numel()
                self._slots[name] = _Slot(0, slice(start, stop), tuple(shape))
                start = stop
            self.storage.append(nn.Parameter(torch.zeros(self.num_rows, start, device=device, dtype=dtype)))
        else:
            for index, (name, shape) in enumerate(shapes.items()):
                kernels = len(shape) == 4
                stored = (shape[0], *shape[2:], shape[1]) if kernels else shape
                self._slots[name] = _Slot(index, None, tuple(shape), kernels)
                self.storage.append(nn.Parameter(torch.zeros(self.num_rows, *stored, device=device, dtype=dtype)))

    def _view(self, slot: _Slot, rows: slice, *, gradient: bool) -> Tensor:
        stored = self.storage[slot.storage]
        tensor = stored.grad if gradient else stored.detach()
        assert tensor is not None
        tensor = tensor[rows]
        if slot.channels_last:
            return tensor.permute(0, 1, 4, 2, 3)
        return tensor if slot.columns is None else tensor[:, slot.columns].view(-1, *slot.shape)

    def leaves(self, rows: slice) -> dict[str, Tensor]:
        """Views (k, ...) of a run of k particles' parameters, as autograd leaves whose gradients land in the storage's."""
        key = (rows.start, rows.stop)
        if key not in self._leaves:
            leaves = {}
            for name, slot in self._slots.items():
                leaf = self._view(slot, rows, gradient=False).requires_grad_()
                if self.storage[slot.storage].grad is not None:
                    leaf.grad = self._view(slot, rows, gradient=True)
                leaves[name] = leaf
            self._leaves[key] = leaves
        return self._leaves[key]

    def stacked_parameters(self) -> dict[str, Tensor]:
        """Every trainable parameter with its leading particle axis, name -> (n, ...); `.grad` likewise, where there is one."""
        return self.leaves(slice(0, self.num_rows))

    def layers(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """(numbers, gradients) of each layer, views (n, m) of the storage, by the layer's path; gradients must be there."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, slot in self._slots.items():
            stored = self.storage[slot.storage]
            assert stored.grad is not None
            columns = slot.columns or slice(None)
            both = stored.detach().flatten(1)[:, columns], stored.grad.view(stored.shape[0], -1)[:, columns]
            found.setdefault(name.rpartition(".")[0], []).append(both)
        return found

    def zero_gradients(self) -> None:
        """Set all gradients to zero in place, making their storage on the first call."""
        for stored in self.storage:
            if stored.grad is None:
                stored.grad = torch.zeros_like(stored)
                self._leaves.clear()
            else:
                stored.grad.zero_()

    def add_prior_gradient(self, std: float, training_size: int) -> None:
        """Add the gradients of -log prior / N, a Gaussian's: (theta - prior mean) / (std^2 N)."""
        scale = 1 / (std**2 * training_size)
        for stored in self.storage:
            assert stored.grad is not None
            stored.grad.add_(stored.detach(), alpha=scale)
        for name, leaf in self.stacked_parameters().items():
            mean = self.prior_mean(name)
            if mean is not None and leaf.grad is not None:
                leaf.grad.sub_(mean, alpha=scale)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # .to(), .cuda(), .double(): storage moves, so views are made anew
        result = super()._apply(*args, **kwargs)
        self._leaves.clear()
        return result

    # ---- computation ---------------------------------------------------------------------------------------------

    def chunks(self, count: int | None = None) -> Iterator[slice]:
        """Runs of at most `chunk_size` neighbouring particles that cover the first `count`, or all n."""
        count = self.num_particles if count is None else count
        for start in range(0, count, self.chunk_size):
            yield slice(start, min(start + self.chunk_size, count))

    def prepare(self, inputs: Inputs, *, per_particle: bool = False) -> Any:
        """What all chunks of particles share of one batch, computed once. Pass the result to `chunk_logits`."""
        return inputs, per_particle

    def training_chunks(self) -> Iterator[slice]:
        """The particles that a training step computes, in runs: all, unless they are draws of which a step needs fewer."""
        return self.chunks()

    def train(self, mode: bool = True) -> Particles:
        """Whether passes are of a training, in which what is random is drawn anew; theta_0 stays in evaluation mode."""
        self.training = mode
        return self

    @abstractmethod
    def chunk_logits(self, prepared: Any, rows: slice) -> Tensor:
        """Logits (k, b, C) of a run of k particles on a prepared batch."""

    def forward(self, inputs: Inputs, *, per_particle: bool = False) -> Tensor:
        """Logits (n, b, C).

        Args:
            inputs: one batch of b examples that all particles see, (b, ...), or with `per_particle=True` already
                particle-major, (n, b, ...). A tensor or a dict of tensors.
            per_particle: whether every particle has its own examples.
        """
        prepared = self.prepare(inputs, per_particle=per_particle)
        return torch.cat([self.chunk_logits(prepared, rows) for rows in self.chunks()])

    # ---- what others need to know ----------------------------------------------------------------------------------

    def prior_mean(self, name: str) -> Tensor | None:
        """Where the Gaussian prior of a stacked parameter is centred, without the particle axis; None is zero."""
        return None

    def factor_pairs(self) -> list[tuple[str, str]]:
        """Names (A, B) of stacked parameters that act only through the product B A; none for full-rank particles."""
        return []

    @abstractmethod
    def merge(self, index: int) -> nn.Module:
        """A plain copy of the model that holds one particle's weights and knows nothing of particles."""

    def rows(self, index: int) -> list[Tensor]:
        """One particle's share of the storage, as leaves with gradients: what an optimizer of its own would step."""
        leaves = []
        for stored in self.storage:
            leaf = stored.detach()[index : index + 1].requires_grad_()
            if stored.grad is not None:
                leaf.grad = stored.grad[index : index + 1]
            leaves.append(leaf)
        return leaves

    @property
    def total_rows(self) -> int:
        """Rows of the storage of all processes together."""
        return self.num_rows if self.shares_rows else self.shard.total

    @property
    def trainable_parameters(self) -> int:
        """How many numbers all particles train, those of other processes and heads included."""
        return self.total_rows * sum(stored[0].numel() for stored in self.storage)
