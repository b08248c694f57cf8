"""easy-VQA: questions about one coloured shape, 13 answers, in the package easy-vqa; no download.

https://github.com/vzhou842/easy-VQA. Validation questions are held out by image, so that no image is in two splits.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from bella.errors import UserError
from benchmarks.image_sets import easy_vqa_folder
from benchmarks.images import decode, fingerprint
from benchmarks.options import Options
from benchmarks.problem import Data, Problem
from benchmarks.questions import Questions

SHAPES, SWITCHES = ("circle", "rectangle", "triangle"), ("yes", "no")

Question = tuple[str, str, int]
"""Text, answer, number of the image."""


class EasyVqaOptions(Options):
    """train_limit, test_limit: questions, taken from as few images as hold them; image_size: images have 64 px."""

    image_size: int = Field(default=64, ge=8)
    train_limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)


class EasyVqa(Problem[EasyVqaOptions]):
    """The package's own test split; a fifth of the training images is held out for validation."""

    options = EasyVqaOptions
    backbone = "image=packaged:efficientnet_lite0+question=packaged:minilm_l6"
    settings: ClassVar[dict[str, Any]] = {"epochs": 4, "batch_size": 32}

    def missing(self, options: EasyVqaOptions) -> str | None:
        """The questions come with a package."""
        try:
            easy_vqa_folder()
        except UserError as error:
            return f"problem easy-vqa: {error}"
        return None

    def fingerprint(self, options: EasyVqaOptions) -> str:
        """Sizes of the question files; the images go with them."""
        folder = easy_vqa_folder()
        return fingerprint([f"{split} {(folder / split / 'questions.json').stat().st_size}" for split in ("train", "test")])

    def load(self, options: EasyVqaOptions) -> Data:
        """Read questions and images."""
        if (problem := self.missing(options)) is not None:
            raise UserError(problem)
        answers = (easy_vqa_folder() / "answers.txt").read_text().split()
        everything = self._read("train")
        images = np.random.default_rng(0).permutation(len({image for _, _, image in everything}))
        held_out = set(images[: len(images) // 5].tolist())
        training = _limited([q for q in everything if q[2] not in held_out], options.train_limit)
        # As many validation questions as go with the training questions in use.
        validation = _limited([q for q in everything if q[2] in held_out], max(1, len(training) // 4))
        test = _limited(self._read("test"), options.test_limit)
        used = len({q[2] for q in training})
        return Data(
            training=self._split("train", training, answers, options),
            validation=self._split("train", validation, answers, options),
            test=self._split("test", test, answers, options),
            class_names=answers,
            image_size=options.image_size,
            description=f"easy-VQA (package easy-vqa), {len(training)} training questions on {used} images and {len(test)} test "
            f"questions, {options.image_size} px",
        )

    def _read(self, split: str) -> list[Question]:
        path = easy_vqa_folder() / split / "questions.json"
        return [(str(text), str(answer), int(image)) for text, answer, image in json.loads(path.read_text())]

    def _split(self, split: str, questions: list[Question], answers: list[str], options: EasyVqaOptions) -> Questions:
        images = sorted({image for _, _, image in questions})
        place = {image: i for i, image in enumerate(images)}
        files = [easy_vqa_folder() / split / "images" / f"{image}.png" for image in images]
        return Questions(
            images=decode(files, options.image_size),
            image_of=torch.tensor([place[image] for _, _, image in questions]),
            texts=[text for text, _, _ in questions],
            targets=torch.tensor([answers.index(answer) for _, answer, _ in questions]),
            ids=[f"{split}/{image}/{number}" for number, (_, _, image) in enumerate(questions)],
            groups=[question_type(answer) for _, answer, _ in questions],
            image_size=options.image_size,
        )


def question_type(answer: str) -> str:
    """What kind of question has this answer."""
    return "yes-no" if answer in SWITCHES else "shape" if answer in SHAPES else "colour"


def _limited(questions: list[Question], limit: int | None) -> list[Question]:
    """The first questions of images in a fixed random order: whole images, until the limit."""
    if limit is None or limit >= len(questions):
        return questions
    images = sorted({image for _, _, image in questions})
    order = {images[j]: place for place, j in enumerate(np.random.default_rng(1).permutation(len(images)))}
    return sorted(questions, key=lambda q: order[q[2]])[:limit]
