"""Monte Carlo dropout: n thinned networks with the weights of one.

Source: Gal & Ghahramani 2016 (arXiv 1506.02142), in whose variational view a network with dropout has random weights: a matrix W
becomes W diag(z) / (1 - p), z ~ Bernoulli(1 - p) for each input. A particle is one draw of z.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from baselines.full_rank import FullRankParticles
from bella.errors import UserError
from bella.lowrank import LowRankParticles, plan_adapters
from bella.particles import derive_seed


def _masks(length: int, rate: float, seeds: Sequence[int], name: str, training: bool) -> Tensor:
    """diag(z) / (1 - p) for each seed, (k, length): drawn anew in a training, always the same afterwards."""
    if training:
        drawn = torch.rand(len(seeds), length)
    else:
        generators = [torch.Generator().manual_seed(derive_seed(seed, "dropout", name)) for seed in seeds]
        drawn = torch.stack([torch.rand(length, generator=g) for g in generators])
    return (drawn >= rate).float() / (1 - rate)


def _check(rate: float, samples: int, num_particles: int) -> None:
    if not 0 < rate < 1 or not 1 <= samples <= num_particles:
        raise UserError(
            f"rate is {rate}: between 0 and 1; samples is {samples}: from 1 to the number of particles ({num_particles})"
        )


class DropoutParticles(FullRankParticles):
    """One full-rank network whose inputs to some layers are dropped.

    In a training step each of `samples` draws holds for the whole minibatch.

    Args:
        rate: p.
        dropped: patterns of linear layers and ungrouped convolutions (see `plan_adapters`); the head, unless told otherwise.
        samples: draws a training step.

    The others are those of `FullRankParticles`.
    """

    shares_rows = True

    def __init__(
        self,
        model: nn.Module,
        num_particles: int,
        *,
        head: str | None = None,
        rate: float = 0.2,
        dropped: Sequence[str] | None = None,
        samples: int = 1,
        **others: Any,
    ) -> None:
        _check(rate, samples, num_particles)
        if dropped is None and head is None:
            raise UserError("dropped: name the layers whose inputs are dropped; there is no trained head")
        names = [head] if dropped is None else [adapter.name for adapter in plan_adapters(model, dropped, 1)]
        self._dropped = [f"{name}.weight" for name in names]
        layers = dict(model.named_modules())
        for name in names:
            if not isinstance(layers.get(str(name)), nn.Linear | nn.Conv2d) or getattr(layers[str(name)], "groups", 1) > 1:
                raise UserError(f"dropped: {name} is no linear layer or ungrouped convolution, which have a column for each input")
        self._rate = rate
        self._samples = samples
        super().__init__(model, num_particles, head=head, **others)

    def training_chunks(self) -> Iterator[slice]:
        """As many draws as a step needs."""
        return self.chunks(self._samples)

    def weights(self, index: int) -> dict[str, Tensor]:
        """The shared weights, with columns dropped."""
        weights = super().weights(0)
        for name in self._dropped:
            W = weights[name]
            mask = _masks(W.shape[1], self._rate, self.seeds[index : index + 1], name, self.training)[0].to(W)
            weights[name] = W * mask.view(1, -1, *[1] * (W.dim() - 2))
        return weights


class DropoutLowRankParticles(LowRankParticles):
    """One low-rank particle whose inputs to A, and to the head, are dropped (PEFT's lora_dropout, kept on to predict).

    Args:
        rate: p.
        samples: draws a training step, each for the whole minibatch.

    The others are those of `LowRankParticles`.
    """

    shares_rows = True

    def __init__(
        self,
        model: nn.Module,
        num_particles: int,
        *,
        rate: float = 0.2,
        samples: int = 1,
        **others: Any,
    ) -> None:
        _check(rate, samples, num_particles)
        self._rate = rate
        self._samples = samples
        super().__init__(model, num_particles, **others)

    def training_chunks(self) -> Iterator[slice]:
        """As many draws as a step needs."""
        return self.chunks(self._samples)

    def weights(self, rows: slice) -> Mapping[str, Tensor]:
        """The shared factors and head, with columns of A and of the head dropped."""
        k = rows.stop - rows.start
        drawn = {name: tensor.expand(k, *tensor.shape[1:]) for name, tensor in self.leaves(slice(0, 1)).items()}
        taps = {f"{a.name}.A": _kernel_size(self._layers[a.name].base) for a in self.adapters}
        for name, size in taps.items() if self.head is None else {**taps, f"{self.head}.weight": 1}.items():
            mask = _masks(drawn[name].shape[-1] // size, self._rate, self.seeds[rows], name, self.training)
            drawn[name] = drawn[name] * mask.to(drawn[name]).repeat_interleave(size, dim=1).unsqueeze(1)
        return drawn


def _kernel_size(layer: nn.Module) -> int:
    """Columns of a layer's weight, read as a matrix, for each of its inputs."""
    return layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
