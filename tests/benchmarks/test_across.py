"""Differences between methods, and their worth in ensemble members, against scikit-learn, brute force and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Stored, store_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from bella.predictive import fit_temperature
from benchmarks.across import compare_rows
from benchmarks.comparison import compare, weighted_auroc
from benchmarks.equivalent import ensemble_curve, equivalent
from benchmarks.examples import FILE, examples_of
from benchmarks.publish import publish
from benchmarks.records import TaskResult, write_record
from benchmarks.stored import StoredRun, entropy, find_runs, softmax
from benchmarks.tables import make_tables, to_markdown


def runs_of(folder: Path, label: str) -> list[StoredRun]:
    return [run for run in find_runs(folder) if run.record.run.label == label]


def store_logits(run: StoredRun, logits: np.ndarray, targets: np.ndarray, split: str = "test") -> None:
    save_file({"logits": logits.astype(np.float32), "targets": targets}, run.folder / "logits" / f"{split}.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two methods over three seeds on 400 images of 4 classes; the first is right more often, by four points in truth."""
    out = tmp_path / "out"
    store_runs(out, [Stored(label, seed, 0.5) for label in ("ensemble", "worse") for seed in (0, 1, 2)])
    targets = np.random.default_rng(0).integers(4, size=400)
    for run in find_runs(out):
        random = np.random.default_rng([run.record.run.seed, len(run.record.run.label)])
        strength = 2.0 if run.record.run.label == "ensemble" else 0.8
        for split in ("validation", "test"):
            store_logits(run, random.normal(size=(3, 400, 4)) + strength * np.eye(4)[targets], targets, split)
    (out / "suite.yaml").write_text(
        "name: two\nmethods: [ensemble, {method: bella-ensemble, label: worse}]\nproblems: [digits]\ntasks: [classification]\n"
        "compare: [[ensemble, worse], [worse, absent]]\n"
    )
    return out


def test_the_difference_is_that_of_the_metrics_and_its_interval_that_of_a_bootstrap_by_hand(folder: Path) -> None:
    first, second = runs_of(folder, "ensemble"), runs_of(folder, "worse")
    found = compare(first, second)
    right = {}
    for label, runs in (("first", first), ("second", second)):
        outcomes = []
        for run in runs:
            stored = run.probabilities("test")
            assert stored is not None
            outcomes.append(stored[0].argmax(-1) == stored[1])
        right[label] = np.stack(outcomes).astype(float)  # (seeds, N)
    assert found["accuracy"][0] == pytest.approx(float(right["first"].mean() - right["second"].mean()), abs=1e-6)
    random, by_hand = np.random.default_rng(1), []
    for _ in range(2000):
        seeds, images = random.integers(3, size=3), random.integers(400, size=400)
        by_hand.append((right["first"] - right["second"])[seeds][:, images].mean())
    low, high = np.quantile(by_hand, (0.025, 0.975))
    assert found["accuracy"][1] == pytest.approx(low, abs=0.01)
    assert found["accuracy"][2] == pytest.approx(high, abs=0.01)
    assert found["accuracy"][1] > 0 > found["nll"][2]
    assert compare(second, first)["nll"][0] == -found["nll"][0]
    assert compare(first, []) == {}


def test_a_run_that_is_not_evaluated_yet_takes_no_part(folder: Path) -> None:
    first, second = runs_of(folder, "ensemble"), runs_of(folder, "worse")
    expected = compare(first[:-1], second)
    (first[-1].folder / "logits" / "test.safetensors").unlink()
    (first[-1].folder / FILE).unlink(missing_ok=True)
    assert compare(runs_of(folder, "ensemble"), second) == expected


def test_out_of_distribution_sets_count_by_group(folder: Path) -> None:
    for run in find_runs(folder):
        record = run.record
        random = np.random.default_rng(run.record.run.seed)
        record.tasks["ood"] = {f"{place}/auroc/entropy": 0.5 for place in ("near/unseen", "far/noise", "far/mean")}
        record.task_results["ood"] = TaskResult(hash="h", options={"limit": 30})
        write_record(record, run.folder)
        store_logits(run, random.normal(size=(3, 50, 4)), np.zeros(50, dtype=np.int64), "unseen")
        store_logits(run, 0.1 * random.normal(size=(3, 30, 4)), np.zeros(30, dtype=np.int64), "ood-noise-30")
    found = compare(runs_of(folder, "ensemble"), runs_of(folder, "worse"))
    for group, split in (("near", "unseen"), ("far", "ood-noise-30")):
        expected = []
        for label in ("ensemble", "worse"):
            for run in runs_of(folder, label):
                sides = [run.probabilities(name) for name in ("test", split)]
                values = [entropy(side[0]).astype(np.float16) for side in sides if side is not None]
                positive = np.repeat([0, 1], [len(v) for v in values])
                expected.append(roc_auc_score(positive, np.concatenate(values)))
        assert found[group][0] == pytest.approx(np.mean(expected[:3]) - np.mean(expected[3:]), abs=1e-5)


def test_a_method_does_not_differ_from_itself(folder: Path) -> None:
    for _, low, high in compare(runs_of(folder, "worse"), runs_of(folder, "worse")).values():
        assert low == high == 0


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_weighted_auroc_is_scikit_learns(seed: int, inside: int, outside: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(5, size=inside + outside).astype(np.float64)
    counts = random.integers(1, 4, size=inside + outside).astype(np.float32)
    positive = np.arange(inside + outside) >= inside
    expected = roc_auc_score(positive, scores, sample_weight=counts)
    found = weighted_auroc(scores[:inside], scores[inside:], counts[None, :inside], counts[None, inside:])
    assert found[0] == pytest.approx(expected, abs=1e-5)


def test_the_ensemble_curve_is_that_of_its_members(folder: Path) -> None:
    runs = runs_of(folder, "ensemble")
    curve = ensemble_curve(runs)
    assert curve is not None
    assert len(curve) == 10
    assert curve[0] == pytest.approx(math.log(runs[0].predictions("test")[0].shape[-1]))
    assert curve[0] > curve[1] > curve[5] > curve[9]
    averaged = []
    for split in ("validation", "test"):
        parts = [run.predictions(split) for run in runs]
        p = np.concatenate([softmax(part[0]) for part in parts if part is not None]).mean(0)
        averaged.append(torch.from_numpy(np.log(p)))
    targets = torch.from_numpy(parts[0][1])  # type: ignore[index]
    T = fit_temperature(averaged[0], targets)
    expected = torch.nn.functional.nll_loss(torch.log_softmax(averaged[1] / T, -1), targets)
    assert curve[-1] == pytest.approx(float(expected), rel=1e-5)


def test_worth_is_linear_between_whole_members() -> None:
    curve = [2.0, 1.0, 0.6, 0.5, 0.55]
    assert equivalent(2.1, curve) == 0.0
    assert equivalent(1.2, curve) == pytest.approx(0.8)
    assert equivalent(1.0, curve) == pytest.approx(1.0)
    assert equivalent(0.8, curve) == pytest.approx(1.5)
    assert equivalent(0.6, curve) == pytest.approx(2.0)
    assert equivalent(0.55, curve) == pytest.approx(2.5)
    assert equivalent(0.5, curve) == pytest.approx(3.0)
    assert equivalent(0.49999, curve) == pytest.approx(3.0)
    assert equivalent(0.4, curve) == float("inf")


def test_published_results_give_the_same_tables(folder: Path, tmp_path: Path) -> None:
    for run in find_runs(folder):  # a record with what the table needs
        record = run.record
        record.tasks["classification"] |= {"tempered/nll": 0.5 + 0.01 * record.run.seed}
        record.costs |= {"train_seconds": 30.0, "trainable_parameters": 300}
        write_record(record, run.folder)
    here = to_markdown(make_tables(folder))
    assert "ensemble - worse" in here
    assert "Worth (members)" in here
    published = publish(folder, tmp_path / "results")
    assert not list(published.rglob("logits"))
    assert to_markdown(make_tables(published)) == here
    stored = load_file(next(published.rglob(FILE)))
    assert set(stored) == {"correct", "confidence", "nll", "entropy"}


def test_examples_hold_what_the_metrics_need(folder: Path) -> None:
    (run, *_) = runs_of(folder, "worse")
    found = examples_of(run)
    stored = run.probabilities("test")
    assert stored is not None
    p, targets = stored
    assert np.array_equal(found["correct"], p.argmax(-1) == targets)
    assert np.allclose(found["nll"], -np.log(p[np.arange(400), targets]), rtol=2e-3, atol=1e-3)
    assert np.allclose(found["confidence"], p.max(-1), rtol=1e-3)
    rows = compare_rows({"worse": runs_of(folder, "worse")}, [("worse", "nothing")])
    assert rows == []
