"""VQAv2's files, and its evaluation worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import miniatures
import pytest
import torch

from bella.errors import UserError
from benchmarks.problems.vqav2 import VqaV2, VqaV2Options, normalised, read_questions
from benchmarks.questions import Questions
from benchmarks.tasks.vqa import human_entropy, soft_accuracy


@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ("Yes", "yes"),
        ("The red car.", "red car"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("a, b", "b"),  # the comma goes, and the article with it
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("red/white", "red white"),
        (" yes\n", "yes"),
        ("3.5", "3.5"),
    ],
)
def test_answers_are_compared_as_vqas_script_does(said: str, compared: str) -> None:
    assert normalised(said) == compared


def split_of(root: Path, **options: object) -> tuple[Questions, list[str]]:
    data = VqaV2().load(VqaV2Options.model_validate({"data": root, "image_size": 16, **options}))
    assert isinstance(data.test, Questions)
    return data.test, data.class_names


def test_soft_accuracy_worked_by_hand(tmp_path: Path) -> None:
    """Seven people say yes, two no, one something else; by the formula, person after person."""
    miniatures.write_vqav2(tmp_path)
    file = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        if annotation["answer_type"] == "yes/no":
            for person, said in zip(annotation["answers"], ["Yes"] * 7 + ["no", "NO", "maybe"], strict=True):
                person["answer"] = said
            annotation["multiple_choice_answer"] = "yes"
    file.write_text(json.dumps(content))
    test, names = split_of(tmp_path)
    assert names == ["yes", "no"]
    humans = test.human_answers
    assert humans is not None
    assert humans[0].tolist() == [0] * 7 + [1, 1, -1]
    assert soft_accuracy(torch.tensor([0]), humans[:1]).item() == 1.0
    # Of "no": leaving out one who said so, one other agrees (1/3, twice); else two do (2/3, eight times).
    assert soft_accuracy(torch.tensor([1]), humans[:1]).item() == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)


def test_where_all_agree_their_words_stand(tmp_path: Path) -> None:
    miniatures.write_vqav2(tmp_path)
    file = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(file.read_text())
    for person in content["annotations"][0]["answers"]:
        person["answer"] = "The Answer."
    file.write_text(json.dumps(content))
    assert set(read_questions(tmp_path, "val2014")[0].people) == {"The Answer."}


def test_people_who_disagree_outside_the_candidates_count_as_different(tmp_path: Path) -> None:
    miniatures.write_vqav2(tmp_path)
    test, names = split_of(tmp_path, answers="frequent", answer_count=2)
    assert len(names) == 2
    humans = test.human_answers
    assert humans is not None
    mixed = [row for row in humans.tolist() if len(set(row)) > 1]
    assert mixed
    assert all(len({a for a in row if a < 0}) >= 1 for row in mixed)
    assert human_entropy(torch.tensor([[-1, -2, -3, -4]])).item() == pytest.approx(torch.tensor(4.0).log().item())


def test_no_image_is_in_two_splits_and_files_are_cocos(tmp_path: Path) -> None:
    miniatures.write_vqav2(tmp_path)
    data = VqaV2().load(VqaV2Options(data=tmp_path, image_size=16, answers="frequent", answer_count=10, train_limit=20))
    number = {split: {int(id_.rpartition("/")[2]) // 1000 for id_ in split_.ids} for split, split_ in
              (("training", data.training), ("validation", data.validation))}  # fmt: skip
    assert number["training"].isdisjoint(number["validation"])
    assert len(data.training) == 20
    (tmp_path / "val2014" / "COCO_val2014_000000000001.jpg").unlink()
    with pytest.raises(UserError, match=r"COCO_val2014_000000000001\.jpg: not a readable image"):
        VqaV2().load(VqaV2Options(data=tmp_path, image_size=16))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    assert "bella download vqav2" in (VqaV2().missing(VqaV2Options(data=tmp_path)) or "")
    miniatures.write_vqav2(tmp_path)
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text("{}")
    with pytest.raises(UserError, match="train2014 cannot be read"):
        VqaV2().load(VqaV2Options(data=tmp_path, image_size=16))
