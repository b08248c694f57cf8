"""Visual question answering: the problem's splits, the encoders, and the metrics with several human answers."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import entropy, spearmanr
from torch import Tensor

from baselines.full_rank import FullRankParticles
from bella.errors import UserError
from bella.lowrank import LowRankParticles
from bella.particles import Particles
from benchmarks import metrics
from benchmarks.backbones import build_classifier, parse
from benchmarks.problem import Data
from benchmarks.problems.digits import Digits, DigitsOptions
from benchmarks.problems.easy_vqa import EasyVqa, EasyVqaOptions
from benchmarks.question_backbones import build_minilm, minilm_folder, minilm_tokens
from benchmarks.questions import Questions, tokenize_questions
from benchmarks.tasks.vqa import human_entropy, soft_accuracy

NAME = EasyVqa.backbone


@pytest.fixture(scope="module")
def data() -> Data:
    loaded = EasyVqa().load(EasyVqaOptions(image_size=32, train_limit=60, test_limit=30))
    tokenize_questions(loaded, minilm_tokens, NAME)
    return loaded


def split_of(examples: object) -> Questions:
    assert isinstance(examples, Questions)
    return examples


def test_no_image_is_in_two_splits(data: Data) -> None:
    images = [{id_.rpartition("/")[0] for id_ in split.ids} for split in (data.training, data.validation, data.test)]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(images, 2))
    assert (len(data.training), len(data.validation), len(data.test)) == (60, 15, 30)
    assert len(data.class_names) == 13


def test_types_follow_the_answers(data: Data) -> None:
    test = split_of(data.test)
    for target, group in zip(test.targets.tolist(), test.groups, strict=True):
        answer = data.class_names[target]
        expected = {"yes": "yes-no", "no": "yes-no", "circle": "shape", "rectangle": "shape", "triangle": "shape"}
        assert group == expected.get(answer, "colour")


def test_questions_and_images_belong_together(data: Data) -> None:
    """Every "what colour" answer is the colour that is most frequent beside the background."""
    test = split_of(data.test)
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "black": (0, 0, 0)}
    checked = 0
    for i, group in enumerate(test.groups):
        answer = data.class_names[int(test.targets[i])]
        if group == "colour" and answer in colours:
            image: Tensor = test.inputs(torch.tensor([i]), torch.device("cpu"))["image"][0]
            shape = (image - image[:, 0, 0].view(3, 1, 1)).abs().sum(0) > 0.5
            seen = image[:, shape].mean(1)
            nearest = min(colours, key=lambda c: sum((float(s) - v) ** 2 for s, v in zip(seen, colours[c], strict=True)))
            assert nearest == answer
            checked += 1
    assert checked > 0


def test_the_question_encoder_equals_sentence_transformers(data: Data) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["what color is the circle?", "is there a red shape?"]
    reference = SentenceTransformer(str(minilm_folder()), device="cpu")
    tokens = reference.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
    encoder = build_minilm(load=True, device="cpu").model.eval()
    with torch.no_grad():
        found = encoder({"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"].bool()})
    expected = reference.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    assert torch.nn.functional.normalize(found, dim=-1).sub(expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["low-rank", "full-rank"])
def test_particles_over_two_encoders_equal_their_merged_models(data: Data, kind: str) -> None:
    model = build_classifier(NAME, class_names=data.class_names, image_size=32, head="trained", templates=[""])
    particles: Particles
    if kind == "low-rank":
        scheme, reference = parse(NAME)
        targets = scheme.build(reference, image_size=None, load=False, device="meta").targets
        particles = LowRankParticles(model, 2, targets=targets, head="head", initial_b_std=0.02)
        adapted = {adapter.name.split(".")[1] for adapter in particles.adapters}
        assert adapted == {"image", "question"}
    else:
        particles = FullRankParticles(model, 2, head="head", initial_std=0.05)
    inputs = data.test.inputs(torch.arange(5), torch.device("cpu"))
    with torch.no_grad():
        logits = particles(inputs)
        for i in range(2):
            assert particles.merge(i).eval()(inputs).sub(logits[i]).abs().max() < 1e-4 * logits.abs().max()
        assert logits[0].sub(logits[1]).abs().max() > 1e-3


def test_questions_need_a_backbone_that_takes_them(data: Data) -> None:
    with pytest.raises(UserError, match="takes no questions, and these data have some"):
        tokenize_questions(data, None, "timm:resnet18")
    digits = Digits().load(DigitsOptions(image_size=16, train_limit=40))
    with pytest.raises(UserError, match="takes questions about images, and these data have images alone"):
        tokenize_questions(digits, minilm_tokens, NAME)


def test_both_weights_are_named() -> None:
    scheme, reference = parse(NAME)
    weights = scheme.weights(reference)
    assert "ImageNet" in weights.description
    assert "MiniLM" in weights.description
    other, changed = parse(NAME.replace("lite0+", "lite0?random+"))
    assert other.weights(changed).checksum != weights.checksum


def test_soft_accuracy_is_the_official_one() -> None:
    generator = torch.Generator().manual_seed(0)
    humans = torch.randint(-1, 4, (50, 10), generator=generator)
    answers = torch.randint(4, (50,), generator=generator)
    found = soft_accuracy(answers, humans)
    for i in range(50):
        people = humans[i].tolist()
        # VQA's evaluation script: for each person, the answers of the other nine.
        own = [min(1.0, sum(a == int(answers[i]) for a in people[:p] + people[p + 1 :]) / 3) for p in range(10)]
        assert float(found[i]) == pytest.approx(sum(own) / 10)


def test_human_disagreement_and_rank_correlation_equal_scipys() -> None:
    generator = torch.Generator().manual_seed(1)
    humans = torch.randint(0, 4, (40, 10), generator=generator)
    counts = [[int((row == answer).sum()) for answer in range(4)] for row in humans]
    disagreement = human_entropy(humans)
    assert disagreement.tolist() == pytest.approx([float(entropy(c)) for c in counts])
    uncertainty = torch.rand(40, generator=generator)
    expected = float(spearmanr(uncertainty, disagreement).statistic)
    assert metrics.rank_correlation(uncertainty, disagreement) == pytest.approx(expected, abs=1e-6)
    assert metrics.rank_correlation(torch.ones(40), disagreement) is None
