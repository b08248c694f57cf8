"""n particles split over processes, one a device: which are whose, and how what couples them is brought together.

Forward and backward of a particle need no other; the kernel of SVGD needs all of them. So each process trains its own rows, and
at each step only the stacked trainable numbers and their gradients are gathered, (n, d) twice, for the inference rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bella.errors import UserError
from bella.inference import Inference
from bella.particles import Particles, Shard


def process_count() -> int:
    """How many processes there are, as torchrun starts them; 1 where it did not."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def split(num_particles: int) -> Shard:
    """This process's share of n particles: neighbours, as many as everyone's or one more.

    Raises:
        UserError: there are more processes than particles.
    """
    size = process_count()
    if size == 1:
        return Shard.whole(num_particles)
    if size > num_particles:
        raise UserError(f"{num_particles} particles over {size} processes: start at most one a particle")
    counts = [num_particles // size + (rank < num_particles % size) for rank in range(size)]
    rank = dist.get_rank()
    return ProcessShard(num_particles, slice(sum(counts[:rank]), sum(counts[: rank + 1])), rank, tuple(counts))


@dataclass(frozen=True)
class ProcessShard(Shard):
    """The share of one process of several.

    Attributes:
        rank: this process's number.
        counts: particles of each process.
    """

    rank: int = 0
    counts: tuple[int, ...] = ()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def gather(self, own: Tensor) -> Tensor:
        """(k, ...) of every process -> (n, ...), on all of them."""
        most = max(self.counts)
        padded = own.detach().contiguous()
        if len(own) < most:
            padded = torch.cat([padded, padded.new_zeros(most - len(own), *own.shape[1:])])
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def mean(self, own: Tensor) -> Tensor:
        """The mean over all particles of what is a mean over each process's."""
        total = own.detach().double() * self.counts[self.rank]
        dist.all_reduce(total)
        return (total / self.total).to(own.dtype)

    def columns(self, width: int) -> slice:
        """Neighbouring columns, as many for each process as possible."""
        size = len(self.counts)
        return slice(self.rank * width // size, (self.rank + 1) * width // size)

    def sum(self, own: Tensor) -> Tensor:
        """All processes have the same sum."""
        dist.all_reduce(own)
        return own

    def decide(self, own: bool) -> bool:
        """What the leading process has decided."""
        return bool(tell(int(own)))

    def agree(self, own: bool) -> bool:
        """Whether it holds on every process."""
        return everyone(own)

    def everyone_done(self) -> None:
        """Wait for all processes."""
        dist.barrier()


def everyone(fine: bool) -> bool:
    """Whether all is fine on every process."""
    told = torch.tensor([int(fine)])
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return bool(told)


def tell(number: int) -> int:
    """The leading process's number, on all processes."""
    told = torch.tensor([number])
    dist.broadcast(told, 0)
    return int(told)


class OnAllParticles(Inference):
    """An inference rule that sees all particles, of which each process keeps its own.

    Whatever the rule is, it may compute the same on every process. SVGD shares the work: distances are summed over a process's
    columns, and only its own particles' directions are formed (`Shard.columns`, `Shard.rows`).

    Memory: numbers and gradients of all n particles, beside one's own.

    Args:
        rule: for all particles.
        own: this process's.
    """

    def __init__(self, rule: Inference, own: Particles) -> None:
        self._rule = rule
        self._all = _AllParticles(own)

    def transform(self, particles: Particles, training_size: int) -> None:
        """Gather, transform, keep one's own."""
        shard, everyone = particles.shard, self._all
        for own, whole in zip(particles.storage, everyone.storage, strict=True):
            assert own.grad is not None
            assert whole.grad is not None
            whole.data.copy_(shard.gather(own))
            whole.grad.copy_(shard.gather(own.grad))
        self._rule.transform(everyone, training_size)
        for own, whole in zip(particles.storage, everyone.storage, strict=True):
            assert own.grad is not None
            assert whole.grad is not None
            own.grad.copy_(whole.grad[shard.rows])

    def learning_rate(self, step: int, warmup: int, total: int) -> float:
        """The rule's."""
        return self._rule.learning_rate(step, warmup, total)

    def begin_step(self, step: int, total: int) -> None:
        """Tell the rule."""
        self._rule.begin_step(step, total)

    def end_step(self, particles: Particles, step: int, total: int) -> None:
        """Show the rule where all particles are now, if it wants to know."""
        if type(self._rule).end_step is not Inference.end_step:
            for own, whole in zip(particles.storage, self._all.storage, strict=True):
                whole.data.copy_(particles.shard.gather(own))
            self._rule.end_step(self._all, step, total)

    def describe(self, training_size: int) -> dict[str, float | str]:
        """The rule's."""
        return self._rule.describe(training_size)

    def state(self) -> dict[str, Tensor]:
        """The rule's, the same on all processes."""
        return self._rule.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Hand it to the rule."""
        self._rule.restore(state)


class _AllParticles(Particles):
    """Storage of n particles like that of a process's own: what an inference rule works on, without a model."""

    def __init__(self, own: Particles) -> None:
        shard = own.shard
        seeds = shard.gather(torch.tensor(own.seeds)).tolist()
        super().__init__(shard.total, shard.total, seeds)
        self.shard = shard
        self.scale = own.scale
        self._slots = own._slots
        self._pairs = own.factor_pairs()
        for stored in own.storage:
            self.storage.append(nn.Parameter(stored.new_zeros(shard.total, *stored.shape[1:])))
        self.zero_gradients()

    def factor_pairs(self) -> list[tuple[str, str]]:
        """As the particles themselves."""
        return self._pairs

    def chunk_logits(self, prepared: object, rows: slice) -> Tensor:
        """There is no model here."""
        raise NotImplementedError

    def merge(self, index: int) -> nn.Module:
        """There is no model here."""
        raise NotImplementedError
