"""Metrics of predictions, from kept libraries; None where a metric is undefined on its input, never NaN."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_roc,
    multiclass_calibration_error,
)

from benchmarks.stored import BINS


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
    if not _both(positive):
        return None
    return _finite(binary_auroc(_ranks(scores), positive.long()))


def average_precision(scores: Tensor, positive: Tensor) -> float | None:
    """Area under the precision-recall curve as average precision (torchmetrics); None for one class only."""
    if not _both(positive):
        return None
    return _finite(binary_average_precision(_ranks(scores), positive.long()))


def false_positive_rate(scores: Tensor, positive: Tensor, at_recall: float = 0.95) -> float | None:
    """Share of negatives above the highest threshold that catches `at_recall` of the positives; None for one class only."""
    if not _both(positive):
        return None
    false, true, _ = binary_roc(_ranks(scores), positive.long())
    return _finite(false[(true >= at_recall - 1e-6).int().argmax()])


def risk_coverage(confidence: Tensor, wrong: Tensor) -> Tensor:
    """Error rate among the k most confident examples, k = 1..N: (N,), (N,) -> (N,) float64.

    Among examples of the same confidence the errors count as evenly spread: the order of the data decides nothing.
    """
    values, group = torch.unique(-confidence.double(), return_inverse=True)
    size = torch.bincount(group, minlength=len(values)).double()
    share = torch.bincount(group, weights=wrong.double(), minlength=len(values)) / size
    return share.repeat_interleave(size.long()).cumsum(0) / torch.arange(1, len(wrong) + 1, dtype=torch.float64)


def area_under_risk_coverage(confidence: Tensor, wrong: Tensor) -> float | None:
    """AURC: mean error rate over coverages 1/N .. 1, by the trapezoid rule (Geifman & El-Yaniv 2017, arXiv 1705.08500).

    Lower is better; None for fewer than two examples.
    """
    if len(wrong) < 2:
        return None
    return _finite(torch.trapezoid(risk_coverage(confidence, wrong)) / (len(wrong) - 1))


def accuracy_at_coverage(confidence: Tensor, wrong: Tensor, coverage: float) -> float | None:
    """Accuracy on the ceil(coverage * N) most confident examples."""
    if len(wrong) == 0:
        return None
    kept = min(len(wrong), math.ceil(coverage * len(wrong) - 1e-9))
    return _finite(1 - risk_coverage(confidence, wrong)[max(kept, 1) - 1])


def selective(log_probabilities: Tensor, targets: Tensor) -> dict[str, float | None]:
    """Selective prediction by the highest probability: AURC and accuracy at 80, 90 and 95 % coverage."""
    top = log_probabilities.max(-1)
    wrong = top.indices != targets
    at = {f"selective/accuracy@{c}": accuracy_at_coverage(top.values, wrong, c / 100) for c in (80, 90, 95)}
    return {"selective/aurc": area_under_risk_coverage(top.values, wrong), **at}


def rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Spearman's rank correlation of (N,) with (N,) (torchmetrics); None where either does not vary."""
    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return None
    return _finite(spearman_corrcoef(a.double(), b.double()))


def mean(values: Tensor) -> float | None:
    """The mean; None of nothing."""
    return _finite(values.double().mean())


def _both(positive: Tensor) -> bool:
    """Whether there are positives and negatives."""
    return bool(positive.any()) and not bool(positive.all())


def _ranks(scores: Tensor) -> Tensor:
    """Scores as ranks in [0, 1]: torchmetrics squashes what is outside, as logits, which ties large scores."""
    ranks = torch.unique(scores.double(), return_inverse=True)[1].double()
    return ranks / max(1.0, float(ranks.max()))


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
