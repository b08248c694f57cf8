"""scikit-learn's digits: what the splits hold, and in what form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.problems.digits import Digits, DigitsOptions

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.mark.parametrize(("classes", "count"), [("0-7", 8), ("all", 10)])
def test_each_class_stands_in_every_split_in_proportion(classes: str, count: int) -> None:
    data = Digits().load(DigitsOptions.model_validate({"classes": classes}))
    splits = (data.training, data.validation, data.test)
    total = sum(map(len, splits))
    for split, share in zip(splits, (0.6, 0.2, 0.2), strict=True):
        assert set(split.targets.tolist()) == set(range(count))
        assert len(split) / total == pytest.approx(share, abs=0.002)
    names = [set(split.ids) for split in splits]
    assert sum(map(len, names)) == len(set().union(*names)) == total


def test_labels_and_pixels_are_the_packages() -> None:
    digits = sklearn_datasets.load_digits()
    data = Digits().load(DigitsOptions(image_size=8))
    for split in (data.training, data.test, data.further["unseen-digits"]):
        rows = [int(name.partition("/")[2]) for name in split.ids]
        assert split.targets.tolist() == digits.target[rows].tolist()
        pixels = split.inputs(torch.arange(len(split)), torch.device("cpu"))
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
        assert np.abs(pixels[:, 1].numpy() - digits.images[rows] / 16).max() <= 1 / 255


def test_a_limit_leaves_validation_and_test_alone() -> None:
    whole, few = Digits().load(DigitsOptions()), Digits().load(DigitsOptions(train_limit=40))
    assert torch.bincount(few.training.targets).tolist() == [5] * 8
    assert set(few.training.ids) <= set(whole.training.ids)
    assert few.validation.ids == whole.validation.ids
    assert few.test.ids == whole.test.ids
