"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8, in the package, no download.

Classes 0-7 are learned; 8 and 9 are in no split and are kept as unseen classes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from bella.errors import UserError
from benchmarks.images import ImageSplit, fingerprint, stratified_choice
from benchmarks.options import Options
from benchmarks.problem import Data, Problem

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class DigitsOptions(Options):
    """classes: "0-7", or "all" ten; image_size: what the 8 x 8 images are enlarged to (bicubic); train_limit: training images."""

    classes: Literal["0-7", "all"] = "0-7"
    image_size: int = Field(default=32, ge=8)
    train_limit: int | None = Field(default=None, ge=1)


class Digits(Problem[DigitsOptions]):
    """60 / 20 / 20 % for training, validation and test, each class in proportion, always the same."""

    options = DigitsOptions
    backbone = "packaged:efficientnet_lite0"
    settings: ClassVar[dict[str, Any]] = {"epochs": 6, "batch_size": 32}

    def missing(self, options: DigitsOptions) -> str | None:
        """scikit-learn is an extra."""
        try:
            import sklearn  # noqa: F401
        except ImportError:
            return "digits needs scikit-learn: pip install 'bella-bench[embedded]'"
        return None

    def fingerprint(self, options: DigitsOptions) -> str:
        """The data never change; the options stand in the hash themselves."""
        return fingerprint(["scikit-learn digits", "60/20/20 seed 0"])

    def load(self, options: DigitsOptions) -> Data:
        """Read and enlarge the images."""
        if (problem := self.missing(options)) is not None:
            raise UserError(problem)
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = self._enlarge(digits.images, options.image_size)
        labels = np.asarray(digits.target)
        seen = 10 if options.classes == "all" else 8

        def split(members: np.ndarray) -> ImageSplit:
            ids = [f"digits/{i:04d}" for i in members]
            return ImageSplit(images[members], torch.from_numpy(labels[members].astype(np.int64)), ids, options.image_size)

        known = np.flatnonzero(labels < seen)
        held_out = known[stratified_choice(labels[known], round(0.4 * len(known)))]
        test = held_out[stratified_choice(labels[held_out], len(held_out) // 2)]
        training = np.setdiff1d(known, held_out)
        if options.train_limit is not None:
            training = training[stratified_choice(labels[training], options.train_limit)]
        unseen = np.flatnonzero(labels >= seen)
        which = "classes 0-7" if seen == 8 else "ten classes"
        return Data(
            training=split(training),
            validation=split(np.setdiff1d(held_out, test)),
            test=split(test),
            class_names=WORDS[:seen],
            image_size=options.image_size,
            description=f"scikit-learn digits, {which}, {len(training)} training images, 8 px enlarged to {options.image_size}",
            templates=("a photo of the number {}.",),
            further={"unseen-digits": split(unseen)} if len(unseen) else {},
            near=("unseen-digits",) if len(unseen) else (),
        )

    def _enlarge(self, grey: np.ndarray, size: int) -> torch.Tensor:
        """(N, 8, 8) of 0..16 to (N, S, S, 3) uint8."""
        pixels = np.round(grey * (255 / 16)).astype(np.uint8)
        large = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in pixels]
        return torch.from_numpy(np.stack(large)).unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()
