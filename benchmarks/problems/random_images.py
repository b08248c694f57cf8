"""Random pixels with random labels: nothing can be learned from them, and a run on them costs what any other run costs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from benchmarks.images import ImageSplit, fingerprint
from benchmarks.options import Options
from benchmarks.problem import Data, Problem


class RandomImagesOptions(Options):
    """classes: C; train_limit and test_limit: images of either split; validation takes as many as the test split."""

    classes: int = Field(default=10, ge=2)
    image_size: int = Field(default=224, ge=8)
    train_limit: int = Field(default=256, ge=2)
    test_limit: int = Field(default=64, ge=2)


class RandomImages(Problem[RandomImagesOptions]):
    """For costs and trials of the machinery, at any size."""

    options = RandomImagesOptions
    backbone = "packaged:efficientnet_lite0"
    settings: ClassVar[dict[str, Any]] = {"epochs": 1, "batch_size": 32}

    def missing(self, options: RandomImagesOptions) -> str | None:
        """Nothing can be."""
        return None

    def fingerprint(self, options: RandomImagesOptions) -> str:
        """The options say it all."""
        return fingerprint(["random-images/1"])

    def class_count(self, options: RandomImagesOptions) -> int:
        """As the options say."""
        return options.classes

    def load(self, options: RandomImagesOptions) -> Data:
        """Draw the pixels."""

        def draw(name: str, count: int, seed: int) -> ImageSplit:
            generator = torch.Generator().manual_seed(seed)
            shape = (count, options.image_size, options.image_size, 3)
            pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            targets = torch.randint(options.classes, (count,), generator=generator)
            return ImageSplit(pixels, targets, [f"{name}/{i}" for i in range(count)], options.image_size)

        return Data(
            training=draw("train", options.train_limit, 0),
            validation=draw("validation", options.test_limit, 1),
            test=draw("test", options.test_limit, 2),
            class_names=[f"class {i}" for i in range(options.classes)],
            image_size=options.image_size,
            description=f"random pixels and labels, {options.classes} classes, {options.image_size} px",
        )
