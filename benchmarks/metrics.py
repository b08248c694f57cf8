"""Metrics of predictions, from kept libraries; None where a metric is undefined on its input, never NaN."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

BINS = 15


def accuracy(log_probabilities: Tensor, targets: Tensor) -> float | None:
    """Share of examples whose most probable class is the target; (N, C), (N,)."""
    return _finite((log_probabilities.argmax(-1) == targets).double().mean())


def nll(log_probabilities: Tensor, targets: Tensor) -> float | None:
    """Mean -log p of the target, nats; None where a target has probability 0."""
    return _finite(F.nll_loss(log_probabilities.double(), targets))


def brier(log_probabilities: Tensor, targets: Tensor) -> float | None:
    """Mean squared distance of the probability vector from the one-hot target, summed over classes: between 0 and 2."""
    probabilities = log_probabilities.double().exp()
    return _finite((probabilities - F.one_hot(targets, probabilities.shape[1])).square().sum(-1).mean())


def expected_calibration_error(log_probabilities: Tensor, targets: Tensor) -> float | None:
    """ECE of the most probable class, 15 equal bins, L1 norm (torchmetrics)."""
    if len(targets) == 0:
        return None
    # A confidence of 1, or a rounding error above it, belongs to the last bin; torchmetrics opens another one for it, or
    # takes the whole input for logits.
    probabilities = log_probabilities.double().exp().clamp(max=1 - 1e-7)
    return _finite(multiclass_calibration_error(probabilities, targets, num_classes=probabilities.shape[1], n_bins=BINS, norm="l1"))


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Area under the ROC curve of scores that should be higher where `positive` holds (torchmetrics); None for one class only."""
    if bool(positive.all()) or not bool(positive.any()):
        return None
    # torchmetrics takes scores outside [0, 1] for logits and squashes them, which ties large ones: ranks keep the order.
    ranks = torch.unique(scores.double(), return_inverse=True)[1].double()
    return _finite(binary_auroc(ranks / max(1.0, float(ranks.max())), positive.long()))


def mean(values: Tensor) -> float | None:
    """The mean; None of nothing."""
    return _finite(values.double().mean())


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
