"""A miniature LLaVA: answers scored as one by one, particles as PEFT's adapters, precision, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miniatures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.full_rank import FullRankParticles
from bella.costs import count_parameters
from bella.errors import UserError
from bella.lowrank import LowRankParticles
from benchmarks.backbones import ImageClassifier, architecture, build_classifier, parse
from benchmarks.llava import AnswerTree

ANSWERS = ["yes", "no", "light blue", "light green", "light"]
QUESTIONS = ["Is the picture red?", "What colour?", "How many pictures? Is the picture red?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniatures.write_llava(tmp_path_factory.mktemp("llava"))


def built(folder: Path, suffix: str = "", head: str = "zero-shot") -> ImageClassifier:
    return build_classifier(f"transformers:{folder}{suffix}", class_names=ANSWERS, image_size=28, head=head, templates=["{}"])


def batch(model: ImageClassifier) -> dict[str, Tensor]:
    assert model.tokenize is not None
    ids, mask = model.tokenize(QUESTIONS)
    image = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return {"image": image, "input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def one_by_one(llava: Any, model: ImageClassifier, inputs: dict[str, Tensor]) -> Tensor:
    """Every answer alone after its question, unpadded, through transformers' own forward with image tokens in the text."""
    scorer: Any = model.backbone
    tree, image_token = scorer.tree, llava.config.image_token_id
    scores = torch.empty(len(QUESTIONS), len(ANSWERS))
    pixels = (inputs["image"] - scorer.mean) / scorer.std
    assert model.tokenize is not None
    for i, question in enumerate(QUESTIONS):
        asked = model.tokenize([question])[0][0].tolist()
        prompt = [*scorer.before_image.tolist(), *[image_token] * 4, *asked]
        for c in range(len(ANSWERS)):
            answer = [int(tree.edge_token[e]) for e in tree.edges_of[c].nonzero().flatten()]
            assert len(answer) == len(ANSWERS[c].split()) + 1
            assert answer[-1] == 2
            ids = torch.tensor([prompt + answer])
            logits = llava(input_ids=ids, pixel_values=pixels[i : i + 1]).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            scores[i, c] = sum(logits[p, token] for p, token in zip(places, answer, strict=True))
    return scores


def test_answers_are_scored_as_one_by_one(folder: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = built(folder).eval()
    inputs = batch(model)
    with torch.no_grad():
        found = model(inputs)
    plain = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    expected = one_by_one(plain, model, inputs)
    assert found.sub(expected).abs().max() < 1e-5
    assert (found < 0).all()
    assert expected.std() > 1e-3


def test_padding_changes_nothing(folder: Path) -> None:
    model = built(folder).eval()
    assert model.tokenize is not None
    inputs = batch(model)
    assert not inputs["attention_mask"].all()
    with torch.no_grad():
        together = model(inputs)
        for i, question in enumerate(QUESTIONS):
            ids, mask = model.tokenize([question])
            alone = model({"image": inputs["image"][i : i + 1], "input_ids": ids, "attention_mask": mask})
            assert alone.sub(together[i]).abs().max() < 1e-5


@given(st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8, unique=True))
@settings(max_examples=50, deadline=None)
def test_a_tree_holds_every_answer_once(answers: list[tuple[int, ...]]) -> None:
    tree = AnswerTree.of(answers, end=2)
    prefixes = {answer[:length] for answer in answers for length in range(1, len(answer) + 1)}
    assert len(tree.tokens) == len(prefixes)
    assert len(tree.edge_token) == len(prefixes) + len(answers)
    for c, answer in enumerate(answers):
        at, path = 0, [int(e) for e in tree.edges_of[c].nonzero().flatten()]
        assert len(path) == len(answer) + 1
        for token in (*answer, 2):
            (edge,) = (e for e in path if int(tree.edge_from[e]) == at and int(tree.edge_token[e]) == token)
            at = next((m + 1 for m in range(len(tree.tokens)) if _prefix(tree, m) == (*_prefix(tree, at - 1), token)), -1)
            assert edge in path


def _prefix(tree: AnswerTree, node: int) -> tuple[int, ...]:
    seen = tree.sees[node].nonzero().flatten().tolist() if node >= 0 else []
    return tuple(int(tree.tokens[m]) for m in sorted(seen, key=lambda m: int(tree.depth[m])))


def test_answers_must_differ() -> None:
    with pytest.raises(UserError, match="two candidate answers have the same tokens"):
        AnswerTree.of([[3], [3]], end=2)
    with pytest.raises(UserError, match="no tokens"):
        AnswerTree.of([[]], end=2)


@pytest.mark.parametrize("targets", [("gate_proj", "up_proj", "down_proj"), ("language_model.*.q_proj", "language_model.*.v_proj")])
def test_particles_are_pefts_adapters(folder: Path, targets: tuple[str, ...]) -> None:
    """Folded particles equal PEFT's adapter with the same factors, on the same model, one after the other."""
    from peft import LoraConfig, inject_adapter_in_model

    model = built(folder).eval()
    particles = LowRankParticles(model, 2, targets=targets, rank=3, initial_b_std=0.3)
    inputs = batch(model)
    with torch.no_grad():
        logits = particles(inputs)
    names = [adapter.name for adapter in particles.adapters]
    for i in range(2):
        other = built(folder).eval()
        config = LoraConfig(r=3, lora_alpha=3, target_modules=names)
        inject_adapter_in_model(config, other)
        stacked = particles.stacked_parameters()
        for name in names:
            layer: Any = other.get_submodule(name)
            layer.lora_A["default"].weight.data.copy_(stacked[f"{name}.A"][i].detach())
            layer.lora_B["default"].weight.data.copy_(stacked[f"{name}.B"][i].detach())
        with torch.no_grad():
            assert other.eval()(inputs).sub(logits[i]).abs().max() < 1e-5
    assert logits[0].sub(logits[1]).abs().max() > 1e-2


def test_the_image_is_seen_once_for_all_particles(folder: Path) -> None:
    model = built(folder).eval()
    particles = LowRankParticles(model, 3, targets=["gate_proj"], rank=2)
    seen: list[int] = []
    scorer: Any = model.backbone
    layer = scorer.llava.model.vision_tower.encoder.layers[0]
    layer.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    inputs = batch(model)
    particles.prepare(inputs)
    seen.clear()
    with torch.no_grad():
        particles(inputs)
    assert seen == [3]


@pytest.mark.parametrize("precision", ["bf16", "4bit"])
def test_theta_0_in_fewer_bits_trains_float32_factors(folder: Path, precision: str) -> None:
    if precision == "4bit":
        pytest.importorskip("bitsandbytes")
    full = built(folder).eval()
    model = built(folder, f"?precision={precision}").eval()
    inputs = batch(model)
    with torch.no_grad():
        assert model(inputs).sub(full(inputs)).abs().max() < (0.1 if precision == "bf16" else 0.5)
    assert count_parameters(model)[0] == count_parameters(full)[0]
    assert count_parameters(model)[1] < 0.51 * count_parameters(full)[1]
    particles = LowRankParticles(model, 2, targets=["down_proj"], rank=2, initial_b_std=0.1)
    particles.zero_gradients()
    particles(inputs).sum().backward()
    assert particles.storage[0].dtype == torch.float32
    assert all(parameter.grad.abs().sum() > 0 for parameter in particles.stacked_parameters().values())
    if precision == "4bit":
        with pytest.raises(UserError, match="held in 4 bits"):
            particles.merge(0)
        return
    whole = FullRankParticles(built(folder, "?precision=bf16"), 1, initial_std=0.0)
    with torch.no_grad():
        assert whole(inputs)[0].sub(full(inputs)).abs().max() < 0.1


def test_gradients_pass_through_four_bits() -> None:
    """As through a layer that holds the dequantized weight."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from benchmarks.precision import set_precision

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))
    set_precision(model, "4bit")
    model.eval()
    layer: Any = model[0]
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert type(model[2]) is torch.nn.Linear
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(8, 64, dtype=torch.bfloat16, requires_grad=True)
    (found,) = torch.autograd.grad(layer(x).float().square().sum(), x)
    (expected,) = torch.autograd.grad(torch.nn.functional.linear(x, weight, layer.bias).float().square().sum(), x)
    assert found.sub(expected).abs().max() <= 0.05 * expected.abs().max()


def test_a_head_may_be_trained_instead(folder: Path) -> None:
    model = built(folder, head="trained").eval()
    particles = LowRankParticles(model, 2, targets=["up_proj"], head="head")
    assert particles(batch(model)).shape == (2, 3, len(ANSWERS))


def test_shapes_of_the_published_models_need_no_hub() -> None:
    seven = architecture("transformers:llava-hf/llava-1.5-7b-hf").model
    assert sum(p.numel() for p in seven.parameters()) == 7_063_427_072
    assert all(p.is_meta for p in seven.parameters())


def test_names_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes images of 28 px, not 224"):
        build_classifier(f"transformers:{folder}", class_names=["a"], image_size=224, head="trained", templates=["{}"])
    with pytest.raises(UserError, match="unknown precision 'bf8': did you mean 'bf16'"):
        parse("timm:resnet18?random&precision=bf8")
    with pytest.raises(UserError, match="either `random` or `checkpoint`"):
        parse("timm:resnet18?random&checkpoint=a")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is a model of type 'bert'"):
        architecture(f"transformers:{tmp_path}")
    scheme, reference = parse(f"transformers:{tmp_path}")
    with pytest.raises(UserError, match=r"holds no \.safetensors file"):
        scheme.weights(reference)
    scheme, reference = parse(f"transformers:{folder}?precision=bf16")
    assert scheme.weights(reference).checksum.endswith("+bf16")
