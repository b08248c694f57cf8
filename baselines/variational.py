"""Mean-field variational inference over the low-rank factors.

Source: Wang et al. 2024, "BLoB: Bayesian Low-Rank Adaptation by Backpropagation for Large Language Models" (arXiv 2406.11675);
the reparameterised gradient is Bayes by Backprop's (Blundell et al. 2015, arXiv 1505.05424).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import UserError
from bella.lowrank import LowRankParticles
from bella.particles import derive_seed


class VariationalLowRankParticles(LowRankParticles):
    """n draws of one posterior q over the factors: A ~ N(M, Omega^2), element by element; B and the head are points.

    Omega = G o G is parameterised by G, as in BLoB, which shows that a Gaussian prior on A is a low-rank one on B A. The objective
    is mean NLL + KL(q || prior) / N; the prior's part of the KL is the usual prior gradient for M, to which

        d/d G  (1/N) sum [ Omega^2 / (2 std^2) - log Omega ]

    is added. A step estimates the expected NLL with `samples` draws, each for the whole minibatch (BLoB flips signs per example
    to the same end); predictions use the n draws that the particles' seeds give, always the same ones.

    Args:
        initial_noise: Omega at the start, as a share of the bound of A's initial numbers, 1 / sqrt(fan_in).
        samples: draws a training step.

    The others are those of `LowRankParticles`.
    """

    shares_rows = True

    def __init__(
        self,
        model: nn.Module,
        num_particles: int,
        *,
        initial_noise: float = 0.3,
        samples: int = 1,
        **others: Any,
    ) -> None:
        if initial_noise <= 0 or not 1 <= samples <= num_particles:
            raise UserError(f"initial_noise is above 0, samples from 1 to the number of particles ({num_particles})")
        self._initial_noise = initial_noise
        self._samples = samples
        super().__init__(model, num_particles, **others)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return super()._shapes() | {f"{a.name}.G": (a.rank, a.fan_in) for a in self.adapters}

    @torch.no_grad()
    def _initialise(self, index: int, seed: int, initial_b_std: float) -> None:
        super()._initialise(index, seed, initial_b_std)
        leaves = self.leaves(slice(index, index + 1))
        for adapter in self.adapters:
            leaves[f"{adapter.name}.G"].fill_((self._initial_noise * adapter.fan_in**-0.5) ** 0.5)

    def training_chunks(self) -> Iterator[slice]:
        """As many draws as a step needs."""
        return self.chunks(self._samples)

    def weights(self, rows: slice) -> Mapping[str, Tensor]:
        """M + Omega o noise for k draws; B and the head are the same for all."""
        k = rows.stop - rows.start
        shared = self.leaves(slice(0, 1))
        drawn = {name: tensor.expand(k, *tensor.shape[1:]) for name, tensor in shared.items() if not name.endswith(".G")}
        generators = [] if self.training else [self._generator(index) for index in range(rows.start, rows.stop)]
        for adapter in self.adapters:
            mean, G = shared[f"{adapter.name}.A"], shared[f"{adapter.name}.G"]
            if self.training:
                noise = torch.randn(k, *mean.shape[1:]).to(mean)
            else:
                noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators]).to(mean)
            drawn[f"{adapter.name}.A"] = mean + G.square() * noise
        return drawn

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seeds[index], "draw"))

    def add_prior_gradient(self, std: float, training_size: int) -> None:
        """The gradient of KL(q || prior) / N, with the Gaussian prior of B and the head as everywhere."""
        leaves = self.stacked_parameters()
        before = {a.name: leaves[f"{a.name}.G"].grad.clone() for a in self.adapters}  # type: ignore[union-attr]
        super().add_prior_gradient(std, training_size)
        for adapter in self.adapters:
            leaf = leaves[f"{adapter.name}.G"]
            G = leaf.detach()
            assert leaf.grad is not None
            leaf.grad.copy_(before[adapter.name] + (2 * G**3 / std**2 - 2 / G) / training_size)
