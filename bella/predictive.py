"""The posterior predictive: model averaging, and how its uncertainty splits.

Everything takes logits (n, N, C) of n particles on N examples and works in log space, in float64 where it matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bella.data import Examples
from bella.errors import UserError, suggest
from bella.features import FeatureCache
from bella.particles import Particles

AVERAGES = ("probabilities", "logits")


def log_mean_probabilities(logits: Tensor) -> Tensor:
    """log of the averaged probabilities, logsumexp_i(log_softmax(logits_i)) - log n: (n, N, C) -> (N, C)."""
    return torch.logsumexp(F.log_softmax(logits, dim=-1), dim=0) - math.log(logits.shape[0])


def log_predictive(logits: Tensor, average: str = "probabilities") -> Tensor:
    """Log probabilities of the averaged prediction, (n, N, C) -> (N, C).

    Args:
        logits: of the particles.
        average: "probabilities" (the paper's equation, a Bayesian model average) or "logits" (the released code).

    Raises:
        UserError: another name.
    """
    if average == "probabilities":
        return log_mean_probabilities(logits)
    if average == "logits":
        return F.log_softmax(logits.mean(0), dim=-1)
    raise UserError(f"unknown average {average!r}: {suggest(average, AVERAGES)}")


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy in nats over the last axis; probabilities of exactly 0 add nothing."""
    return torch.special.entr(log_probabilities.exp()).sum(-1)


def total_uncertainty(logits: Tensor) -> Tensor:
    """Entropy of the averaged prediction, (N,), nats."""
    return entropy(log_mean_probabilities(logits))


def aleatoric_uncertainty(logits: Tensor) -> Tensor:
    """Expected entropy of a particle's prediction, (N,), nats."""
    return entropy(F.log_softmax(logits, dim=-1)).mean(0)


def epistemic_uncertainty(logits: Tensor) -> Tensor:
    """Mutual information of prediction and particle, total - aleatoric, (N,), nats, never negative."""
    return (total_uncertainty(logits) - aleatoric_uncertainty(logits)).clamp_min(0)


def fit_temperature(log_probabilities: Tensor, targets: Tensor) -> float:
    """The T > 0 that minimises the NLL of softmax(log p / T) (Guo et al. 2017, arXiv 1706.04599, on the averaged prediction).

    The NLL is convex in 1/T, so a bisection of its derivative, mean(E_p[z] - z_y) with z = log p, finds it. Searched
    between 1/100 and 100: outside, the validation split says only "all right" or "all wrong".

    Args:
        log_probabilities: (N, C) of the averaged prediction on the validation split.
        targets: (N,).
    """
    z = log_probabilities.double()
    z = z.clamp_min(torch.finfo(torch.float64).min / 1e10)  # log 0 = -inf has no product with a probability of 0
    chosen = z.gather(1, targets.view(-1, 1)).squeeze(1)
    low, high = math.log(1e-2), math.log(1e2)  # of the inverse temperature
    for _ in range(60):
        middle = (low + high) / 2
        probabilities = torch.softmax(z * math.exp(middle), dim=-1)
        if float(((probabilities * z).sum(-1) - chosen).mean()) > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)


def temper(log_probabilities: Tensor, temperature: float) -> Tensor:
    """log softmax(log p / T)."""
    return F.log_softmax(log_probabilities / temperature, dim=-1)


@torch.inference_mode()
def predict(
    particles: Particles,
    examples: Examples,
    *,
    batch_size: int,
    device: torch.device,
    on_batch: Callable[[int, int], None] | None = None,
    features: FeatureCache | None = None,
) -> Tensor:
    """Logits (n, N, C) of every particle on every example, float32, on the CPU: the one evaluation pass.

    Args:
        particles: the posterior.
        examples: a split.
        batch_size: examples at a time.
        device: where the particles are.
        on_batch: told (examples done, N) after each batch.
        features: keeps what all particles share of this split from one pass to the next.
    """
    particles.eval()
    total = len(examples)
    parts = []
    for start in range(0, total, batch_size):
        indices = torch.arange(start, min(start + batch_size, total))
        with autocast(device):
            prepared = particles.prepare(examples.inputs(indices, device)) if features is None else features.prepare(indices)
            logits = torch.cat([particles.chunk_logits(prepared, rows) for rows in particles.chunks()])
        parts.append(logits.float().cpu())
        if on_batch is not None:
            on_batch(int(indices[-1]) + 1, total)
    return torch.cat(parts, dim=1)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on a GPU, nothing elsewhere: the precision that training and evaluation share."""
    kind = "cuda" if device.type == "cuda" else "cpu"  # shapes alone ("meta") have no precision
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")
