"""BatchEnsemble: n members that share their weights but for a rank-1 factor each.

Source: Wen, Tran & Ba 2020 (arXiv 2002.06715): W_i = W o (r_i s_i^T), W trained by all members together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.full_rank import FullRankParticles
from bella.errors import UserError
from bella.heads import draw_head
from bella.particles import derive_seed


class BatchEnsembleParticles(FullRankParticles):
    """One full-rank network, and for every linear layer and convolution of it vectors r_i (out) and s_i (in) a member.

    Biases and norms are shared; a trained head is each member's own. The objective is the mean of the members' U, so what is a
    member's own gets a share of 1/n of its gradient, likelihood and prior alike. The factors start at N(1, factor_std^2): around
    theta_0 the paper's random signs would destroy what was learned before.

    Args:
        factor_std: spread of r and s at the start.

    The others are those of `FullRankParticles`.
    """

    shares_rows = True

    def __init__(
        self,
        model: nn.Module,
        num_particles: int,
        *,
        head: str | None = None,
        factor_std: float = 0.05,
        seeds: int | Sequence[int] = 0,
        chunk_size: int | None = None,
    ) -> None:
        if factor_std < 0:
            raise UserError(f"factor_std is {factor_std}: 0 or more")
        self._factor_std = factor_std
        self._matrices = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        self._factored: dict[str, tuple[int, int]] = {}
        super().__init__(model, num_particles, head=head, seeds=seeds, chunk_size=chunk_size)

    def _shapes(self, network: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The network's own, with heads for all members, and the factors (n, out), (n, in) as names.r and names.s."""
        n = self.num_particles
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in network.items():
            if name not in self._theta_0:
                shapes[name] = (n, *shape)
                continue
            shapes[name] = shape
            if name in self._matrices:
                self._factored[name] = (shape[0], shape[1])
                shapes |= {f"{name}.r": (n, shape[0]), f"{name}.s": (n, shape[1])}
        return shapes

    @torch.no_grad()
    def _initialise(self, index: int, seed: int, initial_std: float) -> None:
        leaves = self.leaves(slice(0, 1))
        for name, theta_0 in self._theta_0.items():
            leaves[name][0].copy_(theta_0)
        for member, own in enumerate(self.seeds):
            generator = torch.Generator().manual_seed(derive_seed(own, "particle"))
            for name in self._factored:
                for part in ("r", "s"):
                    factor = leaves[f"{name}.{part}"][0, member]
                    factor.copy_(1 + self._factor_std * torch.randn(factor.shape, generator=generator))
            if self.head is not None:
                heads = {name: leaf for name, leaf in leaves.items() if name.startswith(f"{self.head}.")}
                draw_head({name: stacked[:, member] for name, stacked in heads.items()}, self.head, generator)

    def prior_mean(self, name: str) -> Tensor | None:
        """theta_0 for the shared weights, one for the factors; zero for heads."""
        if name.endswith((".r", ".s")) and name[:-2] in self._factored:
            return torch.ones((), device=self.storage[0].device, dtype=self.storage[0].dtype)
        return super().prior_mean(name)

    def add_prior_gradient(self, std: float, training_size: int) -> None:
        """As ever, a share of 1/n for what is a member's own."""
        own = [
            leaf.grad
            for name, leaf in self.stacked_parameters().items()
            if leaf.grad is not None and (name not in self._theta_0 or name[:-2] in self._factored)
        ]
        before = [gradient.clone() for gradient in own]
        super().add_prior_gradient(std, training_size)
        for gradient, old in zip(own, before, strict=True):
            gradient.sub_(old).div_(self.num_particles).add_(old)

    def weights(self, index: int) -> dict[str, Tensor]:
        """W o (r_i s_i^T) for one member, its own head, and what is shared."""
        shared = self.leaves(slice(0, 1))
        found = {}
        for name, leaf in shared.items():
            if name in self._factored:
                r, s = (shared[f"{name}.{part}"][0, index] for part in ("r", "s"))
                ones = [1] * (leaf.dim() - 3)
                found[name] = leaf.squeeze(0) * r.view(-1, 1, *ones) * s.view(1, -1, *ones)
            elif name in self._theta_0:
                found[name] = leaf.squeeze(0)
            elif name[:-2] not in self._factored:
                found[name] = leaf[0, index]
        return found
