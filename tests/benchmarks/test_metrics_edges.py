"""Metrics where they are easily wrong: any shape and confidence, large tied scores, one example, certain probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from benchmarks import metrics

ALL = (metrics.accuracy, metrics.nll, metrics.brier, metrics.expected_calibration_error)


@given(st.integers(1, 60), st.integers(2, 6), st.floats(0.1, 4.0), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_any_prediction_equals_float64_numpy(count: int, classes: int, sharpness: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    log_p = torch.log_softmax(torch.from_numpy(sharpness * generator.normal(size=(count, classes))), -1)
    y = generator.integers(classes, size=count)
    targets, p = torch.from_numpy(y), log_p.exp().numpy()
    assert metrics.accuracy(log_p, targets) == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert metrics.nll(log_p, targets) == pytest.approx(-log_p.numpy()[np.arange(count), y].mean(), rel=1e-9)
    assert metrics.brier(log_p, targets) == pytest.approx(((p - np.eye(classes)[y]) ** 2).sum(1).mean(), rel=1e-9, abs=1e-12)
    confidence, right = p.max(1), p.argmax(1) == y
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    ece = sum(abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in set(bins)) / count
    assert metrics.expected_calibration_error(log_p, targets) == pytest.approx(ece, abs=1e-5)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=80, deadline=None)
def test_auroc_with_ties_equals_scikit_learn(cases: list[tuple[int, bool]]) -> None:
    """Scores beyond 1 that differ in the sixth digit only, many of them tied."""
    scores = torch.tensor([100 + 1e-6 * score for score, _ in cases], dtype=torch.float64)
    positive = torch.tensor([holds for _, holds in cases])
    found = metrics.auroc(scores, positive)
    if len(set(positive.tolist())) == 1:
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()), abs=1e-6)


@pytest.mark.parametrize("target", [0, 1])
def test_one_certain_example_is_a_number_or_none(target: int) -> None:
    log_p = torch.tensor([[0.0, -math.inf]], dtype=torch.float64)
    values = [metric(log_p, torch.tensor([target])) for metric in ALL]
    assert values == pytest.approx([1.0, 0.0, 0.0, 0.0] if target == 0 else [0.0, None, 2.0, 1.0], abs=1e-6)
    assert metrics.auroc(torch.zeros(1), torch.tensor([True])) is None


def test_nothing_at_all_is_none() -> None:
    none, targets = torch.empty(0, 3), torch.empty(0, dtype=torch.long)
    assert [metric(none, targets) for metric in ALL] == [None] * 4
    assert metrics.auroc(torch.empty(0), torch.empty(0, dtype=torch.bool)) is None


def test_certain_predictions_share_the_last_bin() -> None:
    p = torch.tensor([[1.0, 0.0], [0.96, 0.04]], dtype=torch.float64)
    assert metrics.expected_calibration_error(p.log(), torch.tensor([1, 0])) == pytest.approx(abs(0.5 - 0.98), abs=1e-6)


def test_rounding_above_one_changes_no_calibration_error() -> None:
    log_p = torch.tensor([[2.3e-16, -40.0], [-1.0, -0.459]], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    expected = metrics.expected_calibration_error(log_p.clamp(max=-1e-15), targets)
    assert metrics.expected_calibration_error(log_p, targets) == pytest.approx(expected, abs=1e-6)
