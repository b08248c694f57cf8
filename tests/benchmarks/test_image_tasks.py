"""Sets and corruptions that image tasks make: the same every time, and named when they cannot be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bella.errors import UserError
from benchmarks.image_sets import image_set
from benchmarks.images import ImageSplit
from benchmarks.tasks.corruption import TYPES, corrupted, official


def split(count: int = 12, size: int = 32) -> ImageSplit:
    pixels = torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSplit(pixels, torch.arange(count) % 3, [f"test/{i}" for i in range(count)], size)


@pytest.mark.parametrize("kind", TYPES)
def test_every_corruption_changes_images_and_is_the_same_every_time(kind: str) -> None:
    images = split(6)
    once, again = (corrupted(images, kind, 3, 6) for _ in range(2))
    assert isinstance(once.images, torch.Tensor)
    assert isinstance(again.images, torch.Tensor)
    assert isinstance(images.images, torch.Tensor)
    assert torch.equal(once.images, again.images)
    assert once.images.shape == images.images.shape
    assert not torch.equal(once.images, images.images)
    assert torch.equal(once.targets, images.targets)


def test_an_images_corruption_does_not_depend_on_its_neighbours() -> None:
    alone, among = corrupted(split(12), "gaussian_noise", 2, 3), corrupted(split(12), "gaussian_noise", 2, 12)
    for place, name in enumerate(alone.ids):
        assert isinstance(alone.images, torch.Tensor)
        assert torch.equal(alone.images[place], among.images[among.ids.index(name)])  # type: ignore[arg-type]


def test_the_global_generator_is_left_alone() -> None:
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    corrupted(split(2), "gaussian_noise", 1, 2)
    assert np.random.rand() == expected


def test_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="32 px or more"):
        corrupted(split(2, 16), "fog", 1, 2)


def test_official_arrays_are_read_by_severity(tmp_path: Path) -> None:
    """Miniature CIFAR-10-C: every image of severity s is filled with s."""
    pixels = np.concatenate([np.full((20, 32, 32, 3), s, dtype=np.uint8) for s in range(1, 6)])
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(20) % 10, 5))
    for severity in (1, 5):
        found = official(tmp_path, "fog", severity, 10, 48)
        assert isinstance(found.images, torch.Tensor)
        assert found.images.shape == (10, 48, 48, 3)
        assert set(found.images.flatten().tolist()) == {severity}
        assert sorted(found.targets.tolist()) == list(range(10))
    with pytest.raises(UserError, match="not the official arrays"):
        official(tmp_path, "snow", 1, 10, 32)
    np.save(tmp_path / "snow.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="not the official arrays"):
        official(tmp_path, "snow", 1, 10, 32)
    np.save(tmp_path / "frost.npy", pixels[:7])
    with pytest.raises(UserError, match="not the official form"):
        official(tmp_path, "frost", 1, 10, 32)


def test_image_sets(tmp_path: Path) -> None:
    noise = image_set("noise", 16, 5)
    assert isinstance(noise.images, torch.Tensor)
    assert noise.images.shape == (5, 16, 16, 3)
    assert torch.equal(noise.images, image_set("noise", 16, 5).images)  # type: ignore[arg-type]
    shapes = image_set("easy-vqa-images", 32, 7)
    assert len(shapes) == 7
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "deep" / "a.png")
    assert image_set(f"folder:{tmp_path}", 8, 10).ids == [f"{tmp_path.name}/a.png"]
    with pytest.raises(UserError, match="did you mean 'noise'"):
        image_set("nose", 8, 1)
    with pytest.raises(UserError, match="no images there"):
        image_set("folder:/no/such/place", 8, 1)
