"""Detection and selective prediction against scikit-learn and torch-uncertainty, and on degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch_uncertainty.metrics import AURC, FPR95

from benchmarks import metrics
from benchmarks.tasks.ood import SCORES, detection, scores


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_detection_equals_scikit_learn_with_ties(cases: list[tuple[int, bool]]) -> None:
    values, positive = np.array([v for v, _ in cases]) * 100.0, np.array([p for _, p in cases])
    own = torch.from_numpy(values), torch.from_numpy(positive)
    found = metrics.auroc(*own), metrics.average_precision(*own), metrics.false_positive_rate(*own)
    if positive.all() or not positive.any():
        assert found == (None, None, None)
        return
    false, true, _ = roc_curve(positive, values, drop_intermediate=False)
    expected = roc_auc_score(positive, values), average_precision_score(positive, values), false[np.argmax(true >= 0.95)]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 50, 1001])
def test_selective_prediction_equals_torch_uncertainty(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    log_p = torch.randn(count, 4, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    targets = torch.randint(4, (count,), generator=generator)
    top = log_p.max(-1)
    aurc = AURC()
    aurc.update(log_p.exp(), targets)
    found = metrics.selective(log_p, targets)
    assert found["selective/aurc"] == pytest.approx(float(aurc.compute()), abs=1e-6)
    order = (-top.values).argsort()
    for coverage in (80, 90, 95):
        kept = order[: math.ceil(coverage * count / 100)]
        expected = float((top.indices == targets)[kept].double().mean())
        assert found[f"selective/accuracy@{coverage}"] == pytest.approx(expected)


def test_false_positive_rate_equals_torch_uncertainty() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(500, generator=generator) > 0.6
    values = torch.rand(500, generator=generator) + 0.3 * positive
    fpr = FPR95(pos_label=1)
    fpr.update(values, positive.long())
    assert metrics.false_positive_rate(values, positive) == pytest.approx(float(fpr.compute()), abs=2e-3)


def test_examples_of_one_confidence_share_their_errors_whatever_their_order() -> None:
    confidence = torch.full((10,), 0.5)
    wrong = torch.tensor([True] * 3 + [False] * 7)
    for order in (wrong, wrong.flip(0)):
        assert metrics.risk_coverage(confidence, order).tolist() == pytest.approx([0.3] * 10)
        assert metrics.area_under_risk_coverage(confidence, order) == pytest.approx(0.3)


def test_one_example_and_certain_ones() -> None:
    one = metrics.selective(torch.zeros(1, 1), torch.tensor([0]))
    assert one == {"selective/aurc": None, **{f"selective/accuracy@{c}": 1.0 for c in (80, 90, 95)}}
    certain = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert metrics.selective(certain, torch.tensor([0, 0]))["selective/aurc"] == pytest.approx(0.5)
    assert all(value is None for value in metrics.selective(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)).values())


def test_scores_point_the_same_way_and_one_particle_has_no_mutual_information() -> None:
    sure, unsure = torch.tensor([8.0, 0.0, 0.0]).expand(3, 20, 3), torch.tensor([1.0, 0.9, 0.8]).expand(3, 20, 3)
    sure, unsure = sure + torch.randn(3, 20, 3) * 1e-3, unsure + torch.randn(3, 20, 3) * 1e-3
    found = detection(scores(sure), scores(unsure))
    assert [found[f"auroc/{name}"] for name in SCORES if name != "mutual_information"] == [1.0] * 4
    assert found["fpr95/entropy"] == 0.0
    alone = detection(scores(sure[:1]), scores(unsure[:1]))
    assert alone["auroc/mutual_information"] is None
    assert alone["auroc/entropy"] == 1.0
