"""Metrics against scikit-learn and float64 NumPy, on random and on degenerate inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from benchmarks import metrics


def random_case(count: int = 200, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(2 * torch.randn(count, classes, generator=generator, dtype=torch.float64), -1)
    return log_p, torch.randint(classes, (count,), generator=generator)


def test_random_predictions() -> None:
    log_p, targets = random_case()
    p, y = log_p.exp().numpy(), targets.numpy()
    assert metrics.accuracy(log_p, targets) == pytest.approx((p.argmax(1) == y).mean())
    assert metrics.nll(log_p, targets) == pytest.approx(log_loss(y, p))
    assert metrics.brier(log_p, targets) == pytest.approx(((p - np.eye(5)[y]) ** 2).sum(1).mean())
    confidence, right = p.max(1), p.argmax(1) == y
    bins = np.minimum((confidence * 15).astype(int), 14)
    ece = sum(abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    assert metrics.expected_calibration_error(log_p, targets) == pytest.approx(ece, rel=1e-5)


def test_auroc_equals_scikit_learn_also_beyond_one() -> None:
    generator = torch.Generator().manual_seed(1)
    positive = torch.rand(300, generator=generator) < 0.3
    for scores in (torch.randn(300, generator=generator), 50 + 1e-3 * torch.randn(300, generator=generator).double()):
        shifted = scores + 0.5 * positive * scores.std()
        assert metrics.auroc(shifted, positive) == pytest.approx(roc_auc_score(positive, shifted), rel=1e-6)


def test_degenerate_inputs_are_defined_or_none() -> None:
    ones, mixed = torch.ones(4, dtype=torch.bool), torch.tensor([True, False, True, False])
    assert metrics.auroc(torch.rand(4), ones) is None
    assert metrics.auroc(torch.rand(4), ~ones) is None
    assert metrics.auroc(torch.zeros(4), mixed) == pytest.approx(0.5)
    certain = torch.log(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    assert metrics.nll(certain, torch.tensor([0, 1])) == 0.0
    assert metrics.nll(certain, torch.tensor([0, 0])) is None
    assert metrics.brier(certain, torch.tensor([0, 0])) == pytest.approx(1.0)
    assert metrics.expected_calibration_error(certain, torch.tensor([0, 0])) == pytest.approx(0.5)
    assert metrics.accuracy(certain[:1], torch.tensor([0])) == 1.0
    assert metrics.mean(torch.empty(0)) is None
    empty = torch.empty(0, 2)
    assert metrics.expected_calibration_error(empty, torch.empty(0, dtype=torch.long)) is None
