"""VQAv2 (Goyal et al. 2017, arXiv 1612.00837): questions about COCO photos, each answered by ten people.

https://visualqa.org: questions and annotations as JSON, images as COCO_train2014_000000000009.jpg. The test answers are not
public: as usual, `val2014` is the test split here, and a part of `train2014` is held out, by image, for validation.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from bella.errors import UserError
from benchmarks.backbones import file_checksum
from benchmarks.datasets import DataSet, DataSetOptions
from benchmarks.downloads import Archive
from benchmarks.images import IN_MEMORY_BYTES, decode, fingerprint
from benchmarks.problem import Data
from benchmarks.questions import Questions

QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"
SPLITS = ("train2014", "val2014")

_SITE = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"

# ---- what VQA's evaluation script makes of an answer (github.com/GT-Vision-Lab/VQA, vqaEval.py) ---------------------

_NUMBERS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(max(place - 1, 0)) for place, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_BETWEEN_DIGITS = re.compile(r"(\d)(\,)(\d)")


def normalised(answer: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, no articles, numbers as digits, punctuation its way.

    The script's table of contractions ("dont" to "don't") is left out: no candidate answer in common use has one.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    stripped = text
    for mark in _PUNCTUATION:
        spaced = f"{mark} " in text or f" {mark}" in text or _BETWEEN_DIGITS.search(text) is not None
        stripped = stripped.replace(mark, "" if spaced else " ")
    stripped = _PERIOD.sub("", stripped)
    words = [_DIGITS.get(word, word) for word in stripped.lower().split()]
    return " ".join(word for word in words if word not in _ARTICLES)


@dataclass(frozen=True)
class Asked:
    """One question: its text, its most given answer, what ten people answered, its image, its number, its type."""

    text: str
    answer: str
    people: tuple[str, ...]
    image: int
    number: int
    kind: str


class VqaV2Options(DataSetOptions):
    """answers: "yes-no", the questions that most people answer so; "frequent", those with one of the `answer_count` most
    frequent answers of the training split. train_limit, test_limit: questions, of images in a fixed random order."""

    image_size: int = Field(default=336, ge=8)
    answers: Literal["yes-no", "frequent"] = "yes-no"
    answer_count: int = Field(default=100, ge=2)
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    templates: tuple[str, ...] | None = ("{}",)


class VqaV2(DataSet[VqaV2Options]):
    """Validation takes at most a quarter as many questions as training."""

    options = VqaV2Options
    name = "vqav2"
    backbone: ClassVar[str | None] = "transformers:llava-hf/llava-1.5-7b-hf"
    settings: ClassVar[dict[str, Any]] = {"epochs": 1, "batch_size": 8, "head": "zero-shot"}
    archives = (
        Archive(f"{_SITE}v2_Questions_Train_mscoco.zip", "v2_Questions_Train_mscoco.zip", "7 MB"),
        Archive(f"{_SITE}v2_Questions_Val_mscoco.zip", "v2_Questions_Val_mscoco.zip", "3 MB"),
        Archive(f"{_SITE}v2_Annotations_Train_mscoco.zip", "v2_Annotations_Train_mscoco.zip", "21 MB"),
        Archive(f"{_SITE}v2_Annotations_Val_mscoco.zip", "v2_Annotations_Val_mscoco.zip", "10 MB"),
        Archive("http://images.cocodataset.org/zips/train2014.zip", "train2014.zip", "13 GB"),
        Archive("http://images.cocodataset.org/zips/val2014.zip", "val2014.zip", "6 GB"),
    )

    def missing(self, options: VqaV2Options) -> str | None:
        """Both splits' questions, annotations and folder of images must be there."""
        root = self.root(options)
        for split in SPLITS:
            for part in (QUESTIONS.format(split), ANNOTATIONS.format(split), split):
                if not (root / part).exists():
                    return self.lacking(part, options)
        return None

    def class_count(self, options: VqaV2Options) -> int:
        """Candidate answers."""
        return 2 if options.answers == "yes-no" else options.answer_count

    def fingerprint(self, options: VqaV2Options) -> str:
        """The questions and annotations, which name the images."""
        root = self.here(options)
        files = [form.format(split) for split in SPLITS for form in (QUESTIONS, ANNOTATIONS)]
        return fingerprint([f"{file} {file_checksum(root / file)}" for file in files])

    def load(self, options: VqaV2Options) -> Data:
        """Read the questions whose answer is a candidate; images are decoded where they fit in memory, or for each batch."""
        root = self.here(options)
        train, test = (read_questions(root, split) for split in SPLITS)
        if options.answers == "yes-no":
            answers = ["yes", "no"]
        else:
            answers = [answer for answer, _ in Counter(asked.answer for asked in train).most_common(options.answer_count)]
        candidates = set(answers)
        usable, usable_test = ([a for a in split if a.answer in candidates] for split in (train, test))
        images = sorted({asked.image for asked in usable})
        count = max(1, round(options.validation_fraction * len(images)))
        held_out = {images[i] for i in np.random.default_rng(0).permutation(len(images))[:count]}
        training = _limited([a for a in usable if a.image not in held_out], options.train_limit)
        validation = _limited([a for a in usable if a.image in held_out], max(1, len(training) // 4))
        tested = _limited(usable_test, options.test_limit)
        if not training or not validation or not tested:
            raise UserError(f"vqav2: {root} has too few questions with an answer among {', '.join(answers[:3])}, ...")

        def split(name: str, asked: list[Asked]) -> Questions:
            return make_questions(root, name, asked, answers, options.image_size)

        share = len(usable_test) / len(test)
        return Data(
            training=split(SPLITS[0], training),
            validation=split(SPLITS[0], validation),
            test=split(SPLITS[1], tested),
            class_names=answers,
            image_size=options.image_size,
            description=f"VQAv2, {len(training)} training and {len(tested)} test questions (val2014), {len(answers)} "
            f"candidate answers, which {share:.0%} of the test questions have; {options.image_size} px",
            templates=options.templates or ("{}",),
        )


def read_questions(root: Path, split: str) -> list[Asked]:
    """Questions of a split with their annotations.

    Raises:
        UserError: a file is damaged, or the two do not belong together.
    """
    try:
        questions = json.loads((root / QUESTIONS.format(split)).read_text())["questions"]
        annotations = {a["question_id"]: a for a in json.loads((root / ANNOTATIONS.format(split)).read_text())["annotations"]}
        found = []
        for question in questions:
            own = annotations[question["question_id"]]
            people = [str(person["answer"]) for person in own["answers"]]
            # As VQA's evaluation: where all agree, their answer stands as they wrote it.
            said = tuple(map(normalised, people)) if len(set(people)) > 1 else tuple(people)
            kind = str(own["answer_type"]).replace("/", "-")
            answer = normalised(str(own["multiple_choice_answer"]))
            found.append(
                Asked(str(question["question"]), answer, said, int(question["image_id"]), int(question["question_id"]), kind)
            )
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{root}: the questions and annotations of {split} cannot be read ({type(error).__name__}: {error}); get them again"
        ) from error


def make_questions(root: Path, split: str, asked: list[Asked], answers: list[str], image_size: int) -> Questions:
    """Questions with their images, as a split."""
    images = sorted({a.image for a in asked})
    place = {image: i for i, image in enumerate(images)}
    files = [root / split / f"COCO_{split}_{image:012d}.jpg" for image in images]
    fits = len(files) * image_size * image_size * 3 <= IN_MEMORY_BYTES
    number = {answer: i for i, answer in enumerate(answers)}
    return Questions(
        images=decode(files, image_size) if fits else files,
        image_of=torch.tensor([place[a.image] for a in asked]),
        texts=[a.text for a in asked],
        targets=torch.tensor([number[a.answer] for a in asked]),
        ids=[f"{split}/{a.number}" for a in asked],
        groups=[a.kind for a in asked],
        image_size=image_size,
        human_answers=torch.tensor([_numbered(a.people, number) for a in asked]),
    )


def _numbered(people: tuple[str, ...], number: dict[str, int]) -> list[int]:
    """Answers of one question as class indices; others as -1, -2, ..., the same for the same answer."""
    others: dict[str, int] = {}
    return [number[said] if said in number else others.setdefault(said, -1 - len(others)) for said in people]


def _limited(asked: list[Asked], limit: int | None) -> list[Asked]:
    """The first questions of images in a fixed random order."""
    if limit is None or limit >= len(asked):
        return asked
    images = sorted({a.image for a in asked})
    order = {images[j]: i for i, j in enumerate(np.random.default_rng(1).permutation(len(images)))}
    return sorted(asked, key=lambda a: order[a.image])[:limit]
