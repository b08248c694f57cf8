"""Laplace approximations around one trained network: of its last layer, or of all low-rank factors; particles are drawn from them.

Sources: Daxberger et al. 2021, "Laplace Redux" (arXiv 2106.14806), whose library laplace-torch does the last layer; Yang et al.
2024, "Bayesian Low-Rank Adaptation for Large Language Models" (arXiv 2308.13111) for the factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.data import Examples
from bella.errors import UserError
from bella.heads import linear_head
from bella.inference import Inference
from bella.lowrank import LowRankParticles
from bella.particles import Particles, map_inputs

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


@torch.no_grad()
def _copy_mode(trained: Particles, drawn: Particles) -> None:
    for mode, stored in zip(trained.storage, drawn.storage, strict=True):
        stored.copy_(mode.expand_as(stored))


@dataclass(frozen=True)
class LastLayerLaplace(_Laplace):
    """The trained head is Gaussian, with a Kronecker-factored Gauss-Newton matrix (laplace-torch); the rest is the mode."""

    def check(self, particles: Particles) -> None:
        """A head must train, and laplace-torch be there."""
        if getattr(particles, "head", None) is None:
            raise UserError("last-layer Laplace needs a head that trains: set head=trained")
        try:
            import laplace  # noqa: F401
        except ImportError as error:
            raise UserError("last-layer Laplace needs laplace-torch: pip install 'bella-bench[laplace]'") from error

    def draw(self, trained: Particles, drawn: Particles, training: Examples, device: torch.device, seed: int) -> dict[str, float]:
        """Fit the Gaussian to the features in front of the head, and draw n heads."""
        import laplace

        head = getattr(trained, "head", None)
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
        _copy_mode(trained, drawn)
        stacked = drawn.stacked_parameters()
        with torch.no_grad():
            for name, numbers in zip(names, heads.split([stacked[name][0].numel() for name in names], dim=1), strict=True):
                stacked[name].copy_(numbers.view_as(stacked[name]))
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


@dataclass(frozen=True)
class LowRankLaplace(_Laplace):
    """Everything that a low-rank particle trains is Gaussian, with a diagonal generalised Gauss-Newton matrix.

    precision = sum_i sum_c p_ic (d log p_ic / d theta)^2 + prior precision, over training examples i and classes c: for a softmax
    the Gauss-Newton matrix is the Fisher information, so this is its diagonal and no estimate. Each example is given to a particle
    of its own that holds the mode, which gives the gradients of many examples in one pass; there is one pass back a class.

    Particles are draws of the factors and compute as ever. Yang et al. keep correlations (Kronecker factors) and predict with the
    network linearised around the mode, which suffers less where the Gaussian is wide: this is their posterior's simplest form.

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
        with torch.no_grad():
            stored = drawn.storage[0]
            stored.copy_(mode + spread.to(mode) * torch.randn(stored.shape, generator=generator).to(mode))
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
