"""Image folders: every kind of image file, files that are none, and folders under other names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bella.errors import UserError
from benchmarks.images import decode, stratified_choice
from benchmarks.problems.imagefolder import DevelopmentFolder, ImageFolder, ImageFolderOptions


def make_tree(root: Path, train: str = "train", test: str = "test") -> Path:
    for split in (train, test):
        for name in ("b", "a"):
            (root / split / name).mkdir(parents=True)
            for i in range(5):
                Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_colour_mode_is_read_as_rgb(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode).save(file)
    found = decode([file], 8)
    assert found.shape == (1, 8, 8, 3)
    assert int(found.min()) > 250


@given(length=st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_a_truncated_image_is_named(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    file = tmp_path_factory.mktemp("images") / "cut.png"
    Image.new("RGB", (8, 8)).save(file)
    file.write_bytes(file.read_bytes()[: min(length, 40)])
    with pytest.raises(UserError, match=r"cut\.png: not a readable image"):
        decode([file], 8)


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("train", "valid"), ("train", "validation")])
def test_other_names_of_splits(train: str, test: str, tmp_path: Path) -> None:
    data = ImageFolder().load(ImageFolderOptions(data=make_tree(tmp_path, train, test), image_size=8))
    assert data.class_names == ["a", "b"]
    assert len(data.test) == 10
    assert all(name.startswith(f"{test}/") for name in data.test.ids)


def test_hidden_folders_and_other_files_are_ignored_and_subfolders_are_read(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    (root / "train" / ".cache").mkdir()
    (root / "train" / "a" / "more").mkdir()
    Image.new("RGB", (8, 8)).save(root / "train" / "a" / "more" / "DEEP.PNG")
    (root / "train" / "a" / "index.html").write_text("none")
    data = ImageFolder().load(ImageFolderOptions(data=root, image_size=8))
    names = [*data.training.ids, *data.validation.ids]
    assert "train/a/more/DEEP.PNG" in names
    assert len(names) == 11


def test_unseen_classes_are_kept_out_of_every_split_and_are_near_images(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    for split in ("train", "test"):
        for name, count in (("c", 4), ("d", 3)):
            (root / split / name).mkdir()
            for i in range(count):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{i}.png")
    data = ImageFolder().load(ImageFolderOptions(data=root, image_size=8, unseen=("c", "b")))
    assert data.class_names == ["a", "d"]
    assert data.near == ("unseen-classes",)
    assert sorted({name.split("/")[1] for name in data.further["unseen-classes"].ids}) == ["b", "c"]
    assert all(name.split("/")[1] in "ad" for split in (data.training, data.validation, data.test) for name in split.ids)
    assert "without c, b" in data.description
    with pytest.raises(UserError, match="has no class 'e'"):
        ImageFolder().load(ImageFolderOptions(data=root, image_size=8, unseen=("e",)))


def test_development_images_are_the_unused_ones_of_training(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    options = ImageFolderOptions(data=root, image_size=8, train_limit=4)
    data, usual = DevelopmentFolder().load(options), ImageFolder().load(options)
    assert data.training.ids == usual.training.ids
    assert data.validation.ids == usual.validation.ids
    images = sorted(str(file.relative_to(root)) for file in root.glob("train/*/*.png"))
    assert sorted([*data.training.ids, *data.validation.ids, *data.test.ids]) == images
    assert "5 development images" in data.description
    with pytest.raises(UserError, match="none is left to test on: set train_limit"):
        DevelopmentFolder().load(ImageFolderOptions(data=root, image_size=8))


def test_one_class_and_empty_splits_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "one"
    (root / "train" / "a").mkdir(parents=True)
    (root / "test").mkdir()
    with pytest.raises(UserError, match="1 class folders: at least 2"):
        ImageFolder().load(ImageFolderOptions(data=root))
    root = make_tree(tmp_path / "two")
    for file in sorted((root / "test").rglob("*.png")):
        file.unlink()
    for folder in ("a", "b"):
        (root / "test" / folder).rmdir()
    with pytest.raises(UserError, match="no class folders with images"):
        ImageFolder().load(ImageFolderOptions(data=root))


@given(st.integers(2, 6), st.integers(2, 20), st.data())
@settings(max_examples=80, deadline=None)
def test_equal_classes_are_chosen_within_one_of_each_other(classes: int, size: int, data: st.DataObject) -> None:
    labels = [c for c in range(classes) for _ in range(size)]
    count = data.draw(st.integers(1, len(labels)))
    found = torch.bincount(torch.tensor([labels[i] for i in stratified_choice(labels, count)]), minlength=classes)
    assert int(found.sum()) == count
    assert int(found.max() - found.min()) <= 1


def test_a_class_of_one_image_stays_in_training(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, count in (("a", 9), ("b", 9), ("rare", 1)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{i}.png")
    data = ImageFolder().load(ImageFolderOptions(data=tmp_path, image_size=8))
    assert set(data.training.targets.tolist()) == {0, 1, 2}


def test_an_image_of_absurd_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"large\.png"):
        decode([tmp_path / "large.png"], 8)


def test_sixteen_bit_images_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert abs(float(decode([tmp_path / "deep.png"], 8).float().mean()) - 128) < 2


def test_the_camera_orientation_is_honoured(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.linspace(0, 255, 16, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    found = decode([tmp_path / "turned.png"], 16)[0, :, :, 0]
    assert int(found[0, 0]) > int(found[0, -1])
