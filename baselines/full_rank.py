"""Full-rank particles: n whole networks around theta_0, as in deep ensembles and full SVGD.

Sources: Lakshminarayanan et al. 2017 (arXiv 1612.01474) for the ensemble, Liu & Wang 2016 (arXiv 1608.04471) for SVGD.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bella.errors import UserError
from bella.heads import draw_head, head_shapes, linear_head, particle_seeds
from bella.lowrank import check_examples_stay_apart
from bella.particles import Particles, derive_seed, map_inputs
from bella.small_images import swap_in, swap_out


class FullRankParticles(Particles):
    """n full sets of weights, stacked (n, ...) a tensor, computed one particle after the other.

    Memory: n parameters and n gradients, theta_0 once (the centre of the prior), and the activations of one particle.
    Batch-norm statistics stay theta_0's; its affine parameters train. Particles start at
    theta_0 + N(0, (initial_std * rms of the tensor)^2), heads are drawn independently.

    Args:
        model: inputs -> logits; becomes theta_0. Whatever must not train is a buffer of it.
        num_particles: n.
        head: path of a linear layer drawn anew for every particle; None: the head is as the model has it.
        initial_std: the spread at the start, relative to each tensor's root mean square.
        seeds: one a particle, or one for all of them.
        chunk_size: kept for the protocol; particles run one after the other all the same.
    """

    default_learning_rate = 1e-4

    def __init__(
        self,
        model: nn.Module,
        num_particles: int,
        *,
        head: str | None = None,
        initial_std: float = 1e-3,
        seeds: int | Sequence[int] = 0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(num_particles, 1, particle_seeds(seeds, num_particles), 1 if self.shares_rows else None)
        check_examples_stay_apart(model)
        self.model = model.requires_grad_(False).eval()
        swap_in(self.model)
        self.head = head
        in_head = head_shapes(linear_head(model, head), head) if head is not None else {}
        self._theta_0 = {name: tensor for name, tensor in model.named_parameters() if name not in in_head}
        if not self._theta_0 and not in_head:
            raise UserError(f"{type(model).__name__} has no parameters that could train")
        reference = next(model.parameters())
        shapes = {name: tuple(tensor.shape) for name, tensor in self._theta_0.items()} | in_head
        self._allocate(self._shapes(shapes), one_buffer=False, device=reference.device, dtype=reference.dtype)
        if reference.is_meta:
            return  # shapes alone: numbers of 7 G parameters would take minutes to draw
        for index, seed in enumerate(self.seeds[: self.num_rows]):
            self._initialise(index, seed, initial_std)

    def _shapes(self, network: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Everything that trains, name -> shape, from the network's own."""
        return network

    @torch.no_grad()
    def _initialise(self, index: int, seed: int, initial_std: float) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, "particle"))
        particle = self.leaves(slice(index, index + 1))
        self._draw_network(particle, initial_std, generator)
        if self.head is not None:
            draw_head(particle, self.head, generator)

    def _draw_network(self, particle: dict[str, Tensor], initial_std: float, generator: torch.Generator) -> None:
        """Start what is not a head near theta_0."""
        for name, theta_0 in self._theta_0.items():
            spread = initial_std * theta_0.square().mean().sqrt()
            noise = torch.randn(theta_0.shape, generator=generator).to(theta_0)
            particle[name][0].copy_(theta_0 + spread * noise)

    def prior_mean(self, name: str) -> Tensor | None:
        """theta_0 for what theta_0 has; zero for heads."""
        return self._theta_0.get(name)

    def _as_computed(self, name: str, weight: Tensor) -> Tensor:
        """A weight in the precision that theta_0 is held in; a head as it is."""
        theta_0 = self._theta_0.get(name)
        return weight if theta_0 is None else weight.to(theta_0.dtype)

    def weights(self, index: int) -> dict[str, Tensor]:
        """What one particle computes with, by the names of the model's parameters."""
        # Not an index, which would give each gradient a copy of its own; nor `view`, which forgets that a depthwise
        # kernel is channels-last, and on small images that costs half of the step.
        return {name: leaf.squeeze(0) for name, leaf in self.leaves(slice(index, index + 1)).items()}

    def chunk_logits(self, prepared: Any, rows: slice) -> Tensor:
        """Logits (k, b, C) of a run of k particles, one after the other."""
        inputs, per_particle = prepared
        logits = []
        for index in range(rows.start, rows.stop):
            weights = {name: self._as_computed(name, weight) for name, weight in self.weights(index).items()}
            own = map_inputs(lambda t, i=index: t[i], inputs) if per_particle else inputs
            logits.append(functional_call(self.model, weights, (own,)))
        return torch.stack(logits)

    @torch.no_grad()
    def merge(self, index: int) -> nn.Module:
        """A plain copy of the model with particle `index`'s weights."""
        merged = copy.deepcopy(self.model)
        swap_out(merged)
        particle = self.weights(index)
        for name, parameter in merged.named_parameters():
            if name in particle:
                parameter.copy_(particle[name])
        return merged
