"""Image folders and digits: splits, limits, and every kind of bad folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bella.errors import UserError
from benchmarks import images
from benchmarks.problem import Data
from benchmarks.problems.digits import Digits, DigitsOptions
from benchmarks.problems.imagefolder import ImageFolder, ImageFolderOptions


def make_tree(root: Path, splits: Sequence[str] = ("train", "test"), count: int = 10) -> Path:
    generator = np.random.default_rng(0)
    for split in splits:
        for name, mode in (("cat", "RGB"), ("ant", "L"), ("bee", "RGBA")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = Image.fromarray(generator.integers(0, 255, (12, 9, 3), dtype=np.uint8))
                pixels.convert(mode).save(folder / f"{i:02d}.png")
    return root


def load(root: Path, **options: object) -> Data:
    return ImageFolder().load(ImageFolderOptions(data=root, image_size=8, **options))


def test_classes_are_alphabetical_and_validation_is_held_out(tmp_path: Path) -> None:
    data = load(make_tree(tmp_path))
    assert data.class_names == ["ant", "bee", "cat"]
    assert (len(data.training), len(data.validation), len(data.test)) == (24, 6, 30)
    assert not set(data.training.ids) & set(data.validation.ids)
    assert torch.bincount(data.validation.targets).tolist() == [2, 2, 2]
    assert all(data.class_names[t] in i for i, t in zip(data.test.ids, data.test.targets.tolist(), strict=True))
    batch = data.test.inputs(torch.arange(5), torch.device("cpu"))
    assert batch.shape == (5, 3, 8, 8)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1


def test_validation_folders_and_limits(tmp_path: Path) -> None:
    data = load(make_tree(tmp_path / "a", ("train", "val", "test")), train_limit=12, test_limit=6)
    assert (len(data.training), len(data.validation), len(data.test)) == (12, 30, 6)
    assert torch.bincount(data.training.targets).tolist() == [4, 4, 4]
    alone = load(make_tree(tmp_path / "b", ("train", "val")))  # ImageNet's layout: a lone val folder is the test split
    assert (len(alone.training), len(alone.validation), len(alone.test)) == (24, 6, 30)
    limited = load(make_tree(tmp_path / "c"), train_limit=12)
    assert (len(limited.training), len(limited.validation)) == (12, 3)


def test_decoding_for_each_batch_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree(tmp_path)
    kept = load(root).test.inputs(torch.tensor([3, 1, 20]), torch.device("cpu"))
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    lazy = load(root).test
    assert not isinstance(lazy.images, torch.Tensor)
    assert torch.equal(lazy.inputs(torch.tensor([3, 1, 20]), torch.device("cpu")), kept)


def test_fingerprint_follows_the_files_not_the_place(tmp_path: Path) -> None:
    first, second = make_tree(tmp_path / "a"), make_tree(tmp_path / "b")
    fingerprints = [ImageFolder().fingerprint(ImageFolderOptions(data=root)) for root in (first, second)]
    assert fingerprints[0] == fingerprints[1]
    (second / "test" / "cat" / "00.png").unlink()
    assert ImageFolder().fingerprint(ImageFolderOptions(data=second)) != fingerprints[0]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    (root / "train" / "notes.txt").write_text("not a class")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    load(root)
    (root / "train" / "ant" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"ant/broken\.png: not a readable image"):
        load(root)
    (root / "train" / "ant" / "broken.png").unlink()
    (root / "train" / "dog").mkdir()
    with pytest.raises(UserError, match="train/dog: a class without images"):
        load(root)
    (root / "train" / "dog").rmdir()
    (root / "test" / "catt").mkdir()
    with pytest.raises(UserError, match="test/catt: no such class in the training folder: did you mean 'cat'"):
        load(root)
    with pytest.raises(UserError, match="no such folder"):
        load(root / "absent")
    with pytest.raises(UserError, match="has no train folder"):
        load(root / "test")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 90))
@settings(max_examples=150)
def test_stratified_choice_keeps_proportions(labels: list[int], count: int) -> None:
    chosen = images.stratified_choice(labels, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(labels))
    assert chosen == images.stratified_choice(labels, count) == sorted(chosen)
    classes = set(labels)
    if count >= len(classes):
        assert {labels[i] for i in chosen} == classes
        for c in classes:
            share = labels.count(c) * min(1.0, count / len(labels))
            assert abs(sum(labels[i] == c for i in chosen) - share) <= len(classes)


def test_digits_keep_two_classes_unseen() -> None:
    pytest.importorskip("sklearn")
    data = Digits().load(DigitsOptions())
    splits = [data.training, data.validation, data.test, data.further["unseen-digits"]]
    ids = [i for split in splits for i in split.ids]
    assert len(ids) == len(set(ids)) == 1797
    assert all(int(split.targets.max()) <= 7 for split in splits[:3])
    assert int(data.further["unseen-digits"].targets.min()) == 8
    assert len(data.class_names) == 8
    assert Digits().load(DigitsOptions()).training.ids == data.training.ids
    everything = Digits().load(DigitsOptions(classes="all", train_limit=50))
    assert len(everything.class_names) == 10
    assert len(everything.training) == 50
    assert not everything.further
