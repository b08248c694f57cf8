"""Particles to PEFT and back, and as whole networks: the same logits on the libraries' own models; the rest refused by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import miniatures
import pytest
import timm
import torch
from helpers import bella
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from typer.testing import CliRunner

from bella.checkpoint import load_tensors, save_tensors
from bella.errors import UserError
from bella.lowrank import LowRankParticles
from bella.particles import map_inputs
from bella.peft_adapters import load_peft_adapters, read_peft_adapter, write_peft_adapter
from benchmarks.backbones import ImageClassifier, build_classifier, parse
from benchmarks.cli import app
from benchmarks.export import export_to_checkpoint, export_to_peft, load_from_peft
from benchmarks.posterior import read_predictions
from benchmarks.records import FILE
from benchmarks.registries import PROBLEMS

SIZES = {"timm:vit_tiny_patch16_224?random": 224, "open_clip:ViT-B-32?random": 224}
SETTINGS = {"timm": ["fc1", "qkv"], "open_clip": ["c_fc", "c_proj"], "transformers": ["gate_proj", "down_proj"]}


def classifier(name: str, head: str, size: int) -> ImageClassifier:
    return build_classifier(name, class_names=["yes", "no"], image_size=size, head=head, templates=["{}"]).eval()


def inputs_of(model: ImageClassifier, size: int) -> Any:
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    if model.tokenize is None:
        return image
    ids, mask = model.tokenize(["Is the picture red?", "What colour?"])
    return {"image": image, "input_ids": ids, "attention_mask": mask}


def stored_run(folder: Path, name: str, particles: LowRankParticles, options: dict[str, Any]) -> Path:
    """A run's folder with what the export reads."""
    run = folder / "run"
    run.mkdir()
    save_tensors({key: tensor.detach() for key, tensor in particles.stacked_parameters().items()}, run / "particles.safetensors")
    info: dict[str, Any] = {
        "problem": "p",
        "method": "bella-svgd",
        "label": "bella-svgd",
        "seed": 0,
        "backbone": name,
        "weights": "w",
        "data": "d",
    }
    info |= {"hash": "h", "config": {"parameterisation": options}}
    record = {"schema": 1, "run": info, "training": {}, "tasks": {}, "task_results": {}}
    (run / FILE).write_text(json.dumps({**record, "costs": {}, "environment": {}}))
    return run


@pytest.mark.parametrize("scheme", ["timm", "open_clip", "transformers"])
def test_there_and_back_gives_the_same_logits(scheme: str, tmp_path: Path) -> None:
    name = next((n for n in SIZES if n.startswith(scheme)), f"transformers:{tmp_path / 'llava'}")
    if scheme == "transformers":
        miniatures.write_llava(tmp_path / "llava")
    size = SIZES.get(name, 28)
    head = "trained" if scheme == "timm" else "zero-shot"
    model = classifier(name, head, size)
    inputs = map_inputs(lambda t: t.double() if t.is_floating_point() else t, inputs_of(model, size))

    options: dict[str, Any] = {"targets": SETTINGS[scheme], "rank": 3, "alpha": 6.0}

    def make() -> LowRankParticles:
        path = "head" if head == "trained" else None
        made = classifier(name, head, size)
        return LowRankParticles(made, 2, **options, head=path, initial_b_std=0.05, seeds=len(made_before))

    made_before: list[int] = []
    particles = make()
    run = stored_run(tmp_path, name, particles, options)
    made_before.append(1)
    with torch.no_grad():
        expected = particles.double()(inputs)
    assert expected[0].sub(expected[1]).abs().max() > 1e-3
    shown = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "adapters")])
    assert shown.exit_code == 0, shown.output
    folders = [Path(line) for line in shown.stdout.split()]
    assert len(folders) == 2

    parsed, reference = parse(name)
    backbone = parsed.build(reference, image_size=None, load=False, device="meta")
    for i, folder in enumerate(folders):
        whole = classifier(name, head, size)
        prefix = f"backbone.{backbone.plain}".rstrip(".")
        plain = whole.get_submodule(prefix)
        if head == "trained":  # timm's own model has its head under timm's own name
            assert backbone.classifier is not None
            plain.set_submodule(backbone.classifier, nn.Linear(backbone.features, 2))
            whole.head = nn.Identity()
        adapted: Any = PeftModel.from_pretrained(plain, folder)
        whole.set_submodule(prefix, adapted.base_model.model)
        with torch.no_grad():
            assert whole.double().eval()(inputs).sub(expected[i]).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)

    other = make()
    with torch.no_grad():
        assert other.double()(inputs).sub(expected).abs().max() > 1e-3
    load_from_peft(other, backbone, folders)
    with torch.no_grad():
        assert torch.equal(other(inputs), expected)


class Small(nn.Module):
    """One of every layer that PEFT holds and that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dilated(self.depthwise(self.conv(x).tanh())).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small().eval()


def exported(particles: LowRankParticles, out: Path) -> list[Path]:
    stacked = particles.stacked_parameters()
    names = [name.removesuffix(".A") for name in stacked if name.endswith(".A")]
    for i in range(particles.num_particles):
        factors = {n: (stacked[f"{n}.A"][i], stacked[f"{n}.B"][i]) for n in names}
        head = {n: t[i] for n, t in stacked.items() if n.startswith("head.")}
        write_peft_adapter(out / str(i), small(), factors, head, "small")
    return [out / str(i) for i in range(particles.num_particles)]


def test_convolutions_attention_and_ranks_of_their_own(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 5, 5)
    particles = LowRankParticles(small(), 2, targets=["conv", "in_proj"], rank=30, head="head", initial_b_std=0.1)
    assert {adapter.rank for adapter in particles.adapters} == {8}
    with torch.no_grad():
        expected = particles(x)
    for i, folder in enumerate(exported(particles, tmp_path)):
        adapted: Any = PeftModel.from_pretrained(small(), folder).eval()
        with torch.no_grad():
            assert adapted(x).sub(expected[i]).abs().max() < 1e-5
    again = LowRankParticles(small(), 2, targets=["conv", "in_proj"], rank=30, head="head", seeds=5)
    load_peft_adapters(again, [tmp_path / "0", tmp_path / "1"], head=("head", "head"))
    with torch.no_grad():
        assert torch.equal(again(x), expected)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("depthwise", "depthwise is a grouped convolution, which PEFT"),
        ("dilated", "dilated is a dilated convolution, which PEFT"),
        ("out_proj", r"attention.out_proj: PEFT .* adds the change of an nn.MultiheadAttention's out_proj twice"),
    ],
)
def test_what_peft_cannot_hold_is_refused_by_name(target: str, said: str, tmp_path: Path) -> None:
    particles = LowRankParticles(small(), 1, targets=[target], rank=1)
    with pytest.raises(UserError, match=said):
        exported(particles, tmp_path)


def test_runs_without_low_rank_factors_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    particles = LowRankParticles(small(), 1, targets=["conv"], rank=1)
    stored_run(tmp_path, "timm:resnet18?random", particles, {})
    save_tensors({"conv1.weight": torch.ones(1, 2)}, run / "particles.safetensors")
    with pytest.raises(UserError, match="no low-rank factors"):
        export_to_peft(run, tmp_path / "out")
    shown = CliRunner().invoke(app, ["export", str(run), "--to", "onnx", "--out", str(tmp_path / "out")])
    assert isinstance(shown.exception, UserError)
    with pytest.raises(UserError):
        export_to_peft(tmp_path / "nowhere", tmp_path / "out")


def pefts_own(folder: Path, targets: Sequence[str], **settings: Any) -> tuple[Any, Path]:
    adapted: Any = get_peft_model(small(), LoraConfig(target_modules=list(targets), **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.1)
    adapted.save_pretrained(folder)
    return adapted.eval(), folder


@pytest.mark.parametrize("settings", [{"r": 2, "lora_alpha": 7}, {"r": 3, "lora_alpha": 4, "use_rslora": True}])
def test_pefts_own_adapters_load_with_their_scale(settings: dict[str, Any], tmp_path: Path) -> None:
    adapted, folder = pefts_own(tmp_path, ["conv"], modules_to_save=["head"], **settings)
    particles = LowRankParticles(small(), 1, targets=["conv"], rank=4, head="head")
    load_peft_adapters(particles, [folder], head=("head", "head"))
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        assert particles(x)[0].sub(adapted(x)).abs().max() < 1e-5


def test_adapters_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    _, folder = pefts_own(tmp_path / "a", ["conv"], r=6)
    particles = LowRankParticles(small(), 1, targets=["conv"], rank=4)
    before = particles.storage[0].detach().clone()
    with pytest.raises(UserError, match="conv is 8 x 27 of rank 6, and the particles' is 8 x 27 of rank 4"):
        load_peft_adapters(particles, [folder])
    with pytest.raises(UserError, match="2 adapters for 1 particles"):
        load_peft_adapters(particles, [folder, folder])
    _, other = pefts_own(tmp_path / "b", ["depthwise.x", "dilated"], r=1)
    with pytest.raises(UserError, match="adapts dilated, which is none of the particles' targets"):
        load_peft_adapters(particles, [other])
    _, dora = pefts_own(tmp_path / "c", ["head"], r=1, use_dora=True)
    with pytest.raises(UserError, match="uses DoRA"):
        read_peft_adapter(dora)
    _, biased = pefts_own(tmp_path / "d", ["head"], r=1, bias="lora_only")
    with pytest.raises(UserError, match="trains biases"):
        read_peft_adapter(biased)
    _, attention = pefts_own(tmp_path / "e", ["attention"], r=1)
    with pytest.raises(UserError, match=r"adapts attention\.base_layer\.out_proj"):
        read_peft_adapter(attention)
    (tmp_path / "f").mkdir()
    with pytest.raises(UserError, match="no PEFT adapter"):
        read_peft_adapter(tmp_path / "f")
    (tmp_path / "f" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match="of type 'IA3'"):
        read_peft_adapter(tmp_path / "f")
    assert torch.equal(particles.storage[0], before)
    assert load_tensors(folder / "adapter_model.safetensors")


SUITE = """
methods: [ensemble, bella-svgd, mc-dropout, bella-variational, batch-ensemble]
problems: [{problem: digits, settings: {backbone: "timm:test_efficientnet?random", train_limit: 64}}]
tasks: [classification]
settings: {particles: 2, epochs: 1}
"""


def test_whole_networks_are_timms_own_and_a_theta_0_for_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    assert bella(monkeypatch, "run", suite, "--device", "cpu", "--out", tmp_path / "out") == 0
    digits = PROBLEMS.resolve("digits")()
    test = digits.load(digits.options(train_limit=64)).test
    images = test.inputs(torch.arange(len(test)), torch.device("cpu"))
    for (run,) in ([*folder.iterdir()] for folder in (tmp_path / "out" / "runs" / "digits").iterdir()):
        method = run.parent.name
        assert bella(monkeypatch, "export", run, "--to", "checkpoint", "--out", tmp_path / method) == 0
        stored = read_predictions(run / "logits" / "test.safetensors").logits
        files = sorted((tmp_path / method).iterdir())
        assert [file.name for file in files] == ["particle0.safetensors", "particle1.safetensors"]
        for i, file in enumerate(files):
            plain: Any = timm.create_model("test_efficientnet", num_classes=stored.shape[-1])
            plain.load_state_dict(load_tensors(file))  # strict: every name is timm's
            theta_0 = classifier(f"timm:test_efficientnet?checkpoint={file}", "trained", 32)
            with torch.no_grad():
                logits = plain.eval()(theta_0.normalise(images))
                features = plain.forward_head(plain.forward_features(theta_0.normalise(images)), pre_logits=True)
                assert logits.sub(stored[i]).abs().max() < 1e-4 * stored.abs().max()
                assert theta_0.backbone(theta_0.normalise(images)).sub(features).abs().max() < 1e-5 * features.abs().max()


@pytest.mark.parametrize("classes", [None, 8])
def test_the_packaged_network_takes_checkpoints_with_and_without_a_classifier(classes: int | None, tmp_path: Path) -> None:
    plain: Any = timm.create_model("tf_efficientnet_lite0", num_classes=classes or 0)
    save_tensors(plain.state_dict(), tmp_path / "network.safetensors")
    loaded = classifier(f"packaged:efficientnet_lite0?checkpoint={tmp_path / 'network.safetensors'}", "trained", 32)
    assert torch.equal(loaded.backbone.conv_head.weight, plain.conv_head.weight)


def test_whole_networks_of_another_theta_0_are_refused(tmp_path: Path) -> None:
    model = classifier("timm:test_efficientnet?random", "trained", 32)
    particles = LowRankParticles(model, 1, targets=["conv_pw"], rank=1, head="head")
    run = stored_run(tmp_path, "timm:test_efficientnet?random", particles, {"targets": ["conv_pw"], "rank": 1})
    record = json.loads((run / FILE).read_text())
    record["run"]["config"] |= {"weights": "another"}
    (run / FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"was trained on weights another; timm:test_efficientnet\?random now has random"):
        export_to_checkpoint(run, tmp_path / "out")
    record["run"]["backbone"] = "image=timm:test_efficientnet?random+question=packaged:minilm_l6"
    (run / FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match="is two networks"):
        export_to_checkpoint(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
