"""Laplace approximations around one trained network: of its last layer, or of all low-rank factors; particles are drawn from them.

Sources: Daxberger et al. 2021, "Laplace Redux" (arXiv 2106.14806), whose library laplace-torch does the last layer; Yang et al.
2024, "Bayesian Low-Rank Adaptation for Large Language Models" (arXiv 2308.13111) for the factors; Immer et al. 2021 (arXiv
2008.08400) for predicting with the network linearised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from baselines.full_rank import FullRankParticles
from bella.data import Examples
from bella.errors import UserError
from bella.heads import draw_head, linear_head
from bella.inference import Inference
from bella.lowrank import LowRankParticles
from bella.particles import Particles, derive_seed, map_inputs

_EXAMPLES = 32
"""Examples at a time, wherever many passes are made."""


@dataclass(frozen=True)
class _Laplace(Inference):
    """One network trained like any other, then n draws of a Gaussian around it.

    Attributes:
        prior_precision: of the Gaussian prior on what is approximated; None: the one of the largest marginal likelihood.
    """

    prior_precision: float | None = None

    couples = False
    draws = True

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.prior_precision is not None and self.prior_precision <= 0:
            raise UserError(f"prior_precision is {self.prior_precision}: above 0, or left out")

    def transform(self, particles: Particles, training_size: int) -> None:
        """Leave the gradients as they are."""

    def trained_particles(self, num_particles: int) -> int:
        """One: the mode."""
        return 1


class ManyHeadsParticles(FullRankParticles):
    """One whole network that all particles share, and a head for each: a pass computes the features once for all of them.

    So a hundred draws of a head cost hardly more than one, in time and in bytes, and what is random about a draw averages out.

    Args:
        chunk_size: heads computed at once (None: all).

    The others are those of `FullRankParticles`.
    """

    shares_rows = True

    def __init__(self, model: nn.Module, num_particles: int, *, chunk_size: int | None = None, **others: Any) -> None:
        super().__init__(model, num_particles, **others)
        self.chunk_size = min(chunk_size or num_particles, num_particles)

    def _shapes(self, network: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The network's own, with heads (n, C, d) for all particles."""
        return {name: shape if name in self._theta_0 else (self.num_particles, *shape) for name, shape in network.items()}

    @torch.no_grad()
    def _initialise(self, index: int, seed: int, initial_std: float) -> None:
        own = self.leaves(slice(0, 1))
        heads = {name: own[name] for name in own if name not in self._theta_0}
        for particle, own_seed in enumerate(self.seeds):
            generator = torch.Generator().manual_seed(derive_seed(own_seed, "particle"))
            if particle == 0:
                self._draw_network(own, initial_std, generator)
            if self.head is not None:
                draw_head({name: stacked[:, particle] for name, stacked in heads.items()}, self.head, generator)

    def weights(self, index: int) -> dict[str, Tensor]:
        """The shared network, and one particle's head."""
        shared = self.leaves(slice(0, 1))
        return {name: leaf.squeeze(0) if name in self._theta_0 else leaf[0, index] for name, leaf in shared.items()}

    def chunk_logits(self, prepared: Any, rows: slice) -> Tensor:
        """Logits (k, b, C) of a run of k particles: to the network their heads are one of k C classes."""
        inputs, per_particle = prepared
        if per_particle or self.head is None:
            return super().chunk_logits(prepared, rows)
        weights = {name: self._as_computed(name, weight) for name, weight in self.weights(0).items()}
        for name, leaf in self.leaves(slice(0, 1)).items():
            if name not in self._theta_0:
                weights[name] = leaf[0, rows].flatten(0, 1)
        logits = functional_call(self.model, weights, (inputs,))
        return logits.unflatten(-1, (rows.stop - rows.start, -1)).movedim(-2, 0)


@dataclass(frozen=True)
class LastLayerLaplace(_Laplace):
    """The trained head is Gaussian, with a Kronecker-factored Gauss-Newton matrix (laplace-torch); the rest is the mode.

    The posterior is wide where examples are few, so that averaging takes many draws: a hundred rather than five.
    """

    def check(self, particles: Particles) -> None:
        """A head must train, and laplace-torch be there."""
        if not isinstance(particles, ManyHeadsParticles) or particles.head is None:
            raise UserError("last-layer Laplace needs a head that trains: set head=trained")
        try:
            import laplace  # noqa: F401
        except ImportError as error:
            raise UserError("last-layer Laplace needs laplace-torch: pip install 'bella-bench[laplace]'") from error

    def draw(self, trained: Particles, drawn: Particles, training: Examples, device: torch.device, seed: int) -> dict[str, float]:
        """Fit the Gaussian to the features in front of the head, and draw n heads."""
        import laplace

        assert isinstance(trained, ManyHeadsParticles)
        head = trained.head
        assert head is not None
        names = [name for name in (f"{head}.weight", f"{head}.bias") if name in trained.stacked_parameters()]
        mode = trained.merge(0).to(device)
        last = linear_head(mode, head)
        features = _features(mode, head, training, device)
        last = last.to(torch.promote_types(last.weight.dtype, torch.float32)).requires_grad_(True)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(features.to(last.weight.dtype), training.targets.to(device)), batch_size=256
        )
        fitted = laplace.Laplace(
            last, "classification", subset_of_weights="all", hessian_structure="kron", prior_precision=self.prior_precision or 1.0
        )
        fitted.fit(loader)
        if self.prior_precision is None:
            fitted.optimize_prior_precision(pred_type="glm", method="marglik")
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            heads = fitted.sample(drawn.num_particles).detach()
        stacked = drawn.stacked_parameters()
        sizes = [tensor.numel() for tensor in last.parameters()]
        with torch.no_grad():
            for network, stored in zip(trained.storage, drawn.storage, strict=True):
                if network.shape == stored.shape:
                    stored.copy_(network)
            for name, numbers in zip(names, heads.split(sizes, dim=1), strict=True):
                stacked[name].copy_(numbers.reshape(stacked[name].shape))
        return {"prior_precision": float(torch.as_tensor(fitted.prior_precision).mean())}


@torch.no_grad()
def _features(model: nn.Module, head: str, examples: Examples, device: torch.device) -> Tensor:
    """What enters a model's head, (N, d)."""
    found: list[Tensor] = []
    hook = linear_head(model, head).register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        for indices in torch.arange(len(examples)).split(_EXAMPLES):
            model(examples.inputs(indices, device))
    finally:
        hook.remove()
    return torch.cat(found)


class LinearisedLowRankParticles(LowRankParticles):
    """Low-rank particles that predict with the network linearised around their mean, f(x; m) + J(x; m) (theta_i - m).

    It is to this network that the Gauss-Newton matrix belongs; a Gaussian that is wide ruins the network itself. J (theta_i - m) is
    one forward-mode derivative. One particle alone is the network itself, so training knows nothing of it.

    Args:
        linearised: False: every particle predicts with its own weights, like any other.

    The others are those of `LowRankParticles`.
    """

    def __init__(self, model: nn.Module, num_particles: int, *, linearised: bool = True, **others: Any) -> None:
        super().__init__(model, num_particles, **others)
        self._linearised = linearised and num_particles > 1

    def chunk_logits(self, prepared: Any, rows: slice) -> Tensor:
        """Logits (k, b, C) of a run of k particles.

        Raises:
            UserError: an operation of the network has no forward-mode derivative.
        """
        if not self._linearised:
            return super().chunk_logits(prepared, rows)
        means = {name: leaf.mean(0, keepdim=True) for name, leaf in self.stacked_parameters().items()}
        with_gradients = torch.is_grad_enabled()
        try:
            # Inference mode has no forward-mode derivatives, and leaving it switches gradients on.
            with (
                torch.inference_mode(False),
                torch.set_grad_enabled(with_gradients),
                forward_ad.dual_level(),
                sdpa_kernel(SDPBackend.MATH),
            ):
                dual = {
                    name: forward_ad.make_dual(means[name].expand_as(leaf).contiguous(), leaf - means[name])
                    for name, leaf in self.leaves(rows).items()
                }
                logits = forward_ad.unpack_dual(self.logits_with(dual, prepared, rows))
        except NotImplementedError as error:
            raise UserError(f"this network cannot be linearised ({error}): set linearised=false") from error
        return logits.primal + logits.tangent

    def merge(self, index: int) -> nn.Module:
        """As ever, where particles predict with their own weights.

        Raises:
            UserError: they do not, and no plain model does what they do.
        """
        if self._linearised:
            raise UserError("a linearised particle is no plain network: set linearised=false")
        return super().merge(index)


@dataclass(frozen=True)
class LowRankLaplace(_Laplace):
    """Everything that a low-rank particle trains is Gaussian, with a diagonal generalised Gauss-Newton matrix.

    precision = sum_i sum_c p_ic (d log p_ic / d theta)^2 + prior precision, over training examples i and classes c: for a softmax
    the Gauss-Newton matrix is the Fisher information, so this is its diagonal and no estimate. Each example is given to a particle
    of its own that holds the mode, which gives the gradients of many examples in one pass; there is one pass back a class.

    Yang et al. keep correlations between numbers of a factor (Kronecker factors); this is their posterior's simplest form. Draws
    are shifted to have the mode as their mean, and scaled by sqrt(n / (n - 1)), which leaves each one's distribution what it is:
    the mean is where linearised particles find the mode, and their mean logits are the mode's.

    Attributes:
        scale: of the covariance; 1 is the posterior.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        if self.scale < 0:
            raise UserError(f"scale is {self.scale}: 0 or more")

    def check(self, particles: Particles) -> None:
        """There must be factors."""
        if not isinstance(particles, LowRankParticles) or particles.shares_rows:
            raise UserError("Laplace over the factors needs low-rank particles; other networks have the last-layer one")

    def draw(self, trained: Particles, drawn: Particles, training: Examples, device: torch.device, seed: int) -> dict[str, float]:
        """Fit the Gaussian, and draw n particles."""
        assert isinstance(trained, LowRankParticles)
        fisher = fisher_diagonal(trained, training, device)
        mode = trained.storage[0].detach()[0]
        precision = evidence_precision(mode, fisher) if self.prior_precision is None else self.prior_precision
        spread = (self.scale / (fisher + precision)).sqrt()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(drawn.storage[0].shape, generator=generator, dtype=torch.float64)
        n = len(noise)
        if n > 1:
            noise = (noise - noise.mean(0)) * (n / (n - 1)) ** 0.5
        with torch.no_grad():
            drawn.storage[0].copy_(mode + spread * noise.to(spread.device))
        return {"prior_precision": precision}


def fisher_diagonal(trained: LowRankParticles, examples: Examples, device: torch.device) -> Tensor:
    """sum_i sum_c p_ic (d log p_ic / d theta)^2 at the first particle, over all examples: (d,), float64."""
    total = torch.zeros(trained.storage[0].shape[1], dtype=torch.float64, device=device)
    mode = {name: tensor[:1].detach() for name, tensor in trained.stacked_parameters().items()}
    for indices in torch.arange(len(examples)).split(_EXAMPLES):
        k = len(indices)
        own = {name: tensor.expand(k, *tensor.shape[1:]).clone().requires_grad_() for name, tensor in mode.items()}
        inputs = map_inputs(lambda t: t.unsqueeze(1), examples.inputs(indices, device))
        logits = trained.logits_with(own, trained.prepare(inputs, per_particle=True), slice(0, k))[:, 0]
        log_p = F.log_softmax(logits.float(), dim=-1)
        p = log_p.detach().exp().double()
        for c in range(log_p.shape[1]):
            keep = c + 1 < log_p.shape[1]
            gradients = torch.autograd.grad(log_p[:, c].sum(), list(own.values()), retain_graph=keep)
            flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).double()
            total += (p[:, c : c + 1] * flat.square()).sum(0)
    return total


def evidence_precision(mode: Tensor, fisher: Tensor, steps: int = 100) -> float:
    """The prior precision of the largest marginal likelihood for a diagonal Laplace approximation.

    MacKay's fixed point (1992): precision = gamma / ||theta||^2 with gamma = sum fisher / (fisher + precision), the number of
    parameters that the data determine.
    """
    precision, size = 1.0, float(mode.double().square().sum())
    for _ in range(steps):
        determined = float((fisher / (fisher + precision)).sum())
        precision = max(determined / max(size, 1e-12), 1e-8)
    return precision
