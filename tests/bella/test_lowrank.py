"""Low-rank particles against PEFT, the formed kernel, and the particles one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import peft
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.errors import UserError
from bella.layers import SplitMultiheadAttention
from bella.lowrank import LowRankParticles, plan_adapters


class WithHead(nn.Module):
    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def efficientnet() -> nn.Module:
    return WithHead(timm.create_model("tf_efficientnet_lite0", num_classes=0), 1280)


def vit() -> nn.Module:
    return WithHead(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=3), 192)


def resnet() -> nn.Module:
    return WithHead(timm.create_model("resnet18", num_classes=0), 512)


def clip() -> nn.Module:
    return WithHead(open_clip.create_model("ViT-B-32", force_image_size=64).visual, 512)


BACKBONES: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    "efficientnet": (efficientnet, ["conv_pw", "conv_pwl"], 32),
    "efficientnet-depthwise": (efficientnet, ["blocks.3.*.conv_dw", "conv_stem"], 32),
    "vit": (vit, ["fc1", "fc2", "qkv"], 32),
    "resnet": (resnet, ["conv1", "conv2", "downsample.0"], 32),
    "clip": (clip, ["c_fc", "c_proj"], 64),
    "clip-attention": (clip, ["resblocks.0.attn", "resblocks.5.attn.out_proj"], 64),
}


def make(name: str, n: int, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[LowRankParticles, Tensor]:
    build, targets, size = BACKBONES[name]
    torch.manual_seed(0)
    model = build().to(dtype)
    particles = LowRankParticles(model, n, targets=targets, head="head", initial_b_std=0.1, rank=2, seeds=3, **options)
    return particles, torch.rand(3, 3, size, size, dtype=dtype)


def gradients(particles: LowRankParticles, x: Tensor) -> dict[str, Tensor]:
    particles.zero_gradients()
    prepared = particles.prepare(x)
    for rows in particles.chunks():
        particles.chunk_logits(prepared, rows).square().sum().backward()
    return {name: leaf.grad.clone() for name, leaf in particles.stacked_parameters().items() if leaf.grad is not None}


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((found - expected).detach().abs().max()) <= tolerance * max(1e-3, float(expected.detach().abs().max()))


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_pass_equals_the_particles_one_by_one(name: str) -> None:
    particles, x = make(name, 3)
    with torch.no_grad():
        logits = particles(x)
        alone = torch.stack([particles.merge(i)(x) for i in range(3)])
        assert close(logits, alone, 1e-10)
        assert not close(logits[0], logits[1], 1e-3)  # the particles do differ
        assert close(particles(x[:1]), logits[:, :1], 1e-10)  # b = 1 does not broadcast
        own = torch.stack([x, x * 0.5, x.flip(0)])
        expected = torch.stack([particles.merge(i)(own[i]) for i in range(3)])
        assert close(particles(own, per_particle=True), expected, 1e-10)


@pytest.mark.parametrize("name", ["efficientnet", "vit", "resnet"])
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_change_nothing(name: str, chunk_size: int) -> None:
    particles, x = make(name, 3)
    logits, whole = particles(x).detach(), gradients(particles, x)
    particles.chunk_size = chunk_size
    assert close(particles(x), logits, 1e-10)
    for key, gradient in gradients(particles, x).items():
        assert close(gradient, whole[key], 1e-9), key


@pytest.mark.parametrize(
    ("name", "alpha"),
    [("efficientnet", None), ("efficientnet", 5.0), ("vit", None), ("resnet", 5.0), ("clip", None), ("clip-attention", None)],
)
def test_logits_and_gradients_equal_peft(name: str, alpha: float | None) -> None:
    """PEFT with the same A and B, one adapter at a time, in float32: 1e-5 of the largest entry."""
    particles, x = make(name, 2, torch.float32, alpha=alpha)
    logits, own = particles(x).detach(), gradients(particles, x)
    stacked = particles.stacked_parameters()
    build, _, _ = BACKBONES[name]
    torch.manual_seed(0)
    model = build().float()
    names = [adapter.name for adapter in particles.adapters]
    if name == "clip-attention":
        # PEFT adapts a whole attention layer, and (0.21.2) adds the out-projection's change twice: only the in-projection
        # is held against it. Out-projections are held against merged models above.
        names = ["backbone.transformer.resblocks.0.attn"]
        for layer in ("0", "5"):
            stacked[f"backbone.transformer.resblocks.{layer}.attn.out_proj.B"].data.zero_()
        logits, own = particles(x).detach(), gradients(particles, x)
    config = peft.LoraConfig(r=2, lora_alpha=alpha or 2, target_modules=names, modules_to_save=["head"])
    adapted = peft.get_peft_model(model, config).eval()
    modules = dict(adapted.named_modules())
    for i in range(2):
        pairs = {}
        for adapter in particles.adapters:
            path = f"base_model.model.{adapter.name}"
            if name == "clip-attention":
                if not adapter.name.endswith(".in_proj"):
                    continue
                path = path.removesuffix(".in_proj")
            pairs[adapter.name] = (modules[path].lora_A["default"].weight, modules[path].lora_B["default"].weight)
        head = modules["base_model.model.head"].modules_to_save["default"]
        with torch.no_grad():
            for key, (A, B) in pairs.items():
                A.copy_(stacked[f"{key}.A"][i].view(A.shape))
                B.copy_(stacked[f"{key}.B"][i].view(B.shape))
            head.weight.copy_(stacked["head.weight"][i])
            head.bias.copy_(stacked["head.bias"][i])
        adapted.zero_grad()
        output = adapted(x)
        assert close(logits[i], output, 1e-5)
        output.square().sum().backward()
        largest = max(float(gradient[i].abs().max()) for gradient in own.values())
        for key, (A, B) in pairs.items():
            for part, theirs in (("A", A), ("B", B)):
                assert theirs.grad is not None
                difference = (own[f"{key}.{part}"][i] - theirs.grad.view(own[f"{key}.{part}"][i].shape)).abs().max()
                assert float(difference) <= 1e-5 * largest, (key, part)
        assert close(own["head.weight"][i], head.weight.grad, 1e-5)


class OneConvolution(nn.Module):
    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "pointwise": {"kernel_size": 1},
    "pointwise-strided": {"kernel_size": 1, "stride": 2, "bias": False},
    "pointwise-padded": {"kernel_size": 1, "padding": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "oblong": {"kernel_size": (1, 3), "padding": (0, 1)},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "same": {"kernel_size": 3, "padding": "same"},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "grouped-dilated": {"kernel_size": 3, "groups": 2, "dilation": 2, "bias": False},
    "depthwise": {"kernel_size": 3, "groups": 4, "stride": 2, "padding": 1},
}


def convolution_particles(options: dict[str, Any], dtype: torch.dtype) -> tuple[LowRankParticles, nn.Conv2d, Tensor]:
    torch.manual_seed(1)
    convolution = nn.Conv2d(4, 8, **options).to(dtype)
    particles = LowRankParticles(OneConvolution(convolution), 3, targets=["convolution"], rank=3, initial_b_std=1.0)
    return particles, convolution, torch.randn(2, 4, 9, 8, dtype=dtype)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_equals_the_formed_kernel(name: str) -> None:
    particles, convolution, x = convolution_particles(CONVOLUTIONS[name], torch.float64)
    logits, own = particles(x).detach(), gradients(particles, x)
    stacked = particles.stacked_parameters()
    assert stacked["convolution.A"].shape[1] == min(3, 8, convolution.weight[0].numel())
    for i in range(3):
        A = stacked["convolution.A"][i].detach().clone().requires_grad_()
        B = stacked["convolution.B"][i].detach().clone().requires_grad_()
        kernel = convolution.weight + (B @ A).view(convolution.weight.shape)
        if CONVOLUTIONS[name].get("padding_mode") == "reflect":
            expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, convolution.bias)
        else:
            c = convolution
            expected = F.conv2d(x, kernel, c.bias, c.stride, c.padding, c.dilation, c.groups)
        assert close(logits[i], expected, 1e-12)
        expected.square().sum().backward()
        assert close(own["convolution.A"][i], A.grad, 1e-10)
        assert close(own["convolution.B"][i], B.grad, 1e-10)


@pytest.mark.parametrize("options", [{"kernel_size": 1}, {"kernel_size": 3, "groups": 32}])
def test_a_small_change_of_formed_weights_survives_bf16(options: dict[str, Any]) -> None:
    """A sum of bf16 numbers would lose about half of a change of a thousandth of W."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 64, **options)
    particles = LowRankParticles(OneConvolution(convolution), 3, targets=["convolution"], rank=3, initial_b_std=3e-3)
    x = torch.randn(64, 64, 6, 6)
    particles(x[:2])  # finds the fan-out in full precision
    with torch.no_grad():
        exact = (particles(x)[0] - convolution(x)).double().flatten()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = (particles(x)[0].double() - convolution(x).double()).flatten()
    # Single outputs are noisy from rounding; their regression on the exact change is not.
    assert float(found @ exact / exact.square().sum()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("case", ["self", "cross", "bool-mask", "float-mask", "per-head-mask", "padding", "both"])
def test_split_attention_equals_the_original(batch_first: bool, need_weights: bool, case: str) -> None:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(12, 3, batch_first=batch_first).double().eval()
    b, length, source = 2, 5, 7 if case == "cross" else 5
    q = torch.randn(b, length, 12, dtype=torch.float64)
    k = torch.randn(b, source, 12, dtype=torch.float64) if case == "cross" else q
    options: dict[str, Any] = {"need_weights": need_weights, "average_attn_weights": case != "self"}
    causal = torch.ones(length, source, dtype=torch.bool).triu(1)
    if case in ("bool-mask", "both"):
        options["attn_mask"] = causal
    if case == "float-mask":
        options["attn_mask"] = torch.randn(length, source, dtype=torch.float64)
    if case == "per-head-mask":
        options["attn_mask"] = torch.randn(b * 3, length, source, dtype=torch.float64)
    if case in ("padding", "both"):
        options["key_padding_mask"] = torch.tensor([[False] * 5, [False, False, False, True, True]])
    if not batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    expected = original(q, k, k, **options)
    found = SplitMultiheadAttention(original)(q, k, k, **options)
    assert close(found[0], expected[0], 1e-12)
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        assert close(found[1], expected[1], 1e-12)


def test_a_merged_particle_has_its_change_times_alpha_over_rank() -> None:
    particles, x = make("vit", 2, alpha=3.0)
    with torch.no_grad():
        assert close(particles(x), torch.stack([particles.merge(i)(x) for i in range(2)]), 1e-10)
    with pytest.raises(UserError, match="alpha is 0"):
        make("vit", 2, alpha=0.0)


def test_merge_leaves_the_particles_as_they_were() -> None:
    particles, x = make("clip-attention", 2)
    before = particles(x).detach()
    merged = particles.merge(1)
    assert not any("LowRank" in type(m).__name__ or "Particle" in type(m).__name__ for m in merged.modules())
    assert any(isinstance(m, nn.MultiheadAttention) for m in merged.modules())
    assert torch.equal(particles(x), before)


@pytest.mark.parametrize("n", [1, 20])
def test_theta_0_is_held_once(n: int) -> None:
    model = vit()
    held = {p.data_ptr() for p in model.parameters()}
    count = sum(p.numel() for p in model.parameters())
    particles = LowRankParticles(model, n, targets=["fc1"], head="head")
    frozen = [p for p in particles.parameters() if not p.requires_grad]
    assert {p.data_ptr() for p in frozen} <= held
    assert sum(p.numel() for p in frozen) <= count


def test_counts_of_the_released_set_up() -> None:
    tower = open_clip.create_model("ViT-B-32", device="meta").visual
    for rank in (1, 2, 4, 8, 16):
        assert sum(a.parameters for a in plan_adapters(tower, ["c_fc", "c_proj"], rank)) == 92_160 * rank


def test_bad_targets_are_refused_with_the_near_miss() -> None:
    with pytest.raises(UserError, match="did you mean 'fc1'"):
        plan_adapters(vit(), ["fcl1"], 4)
    with pytest.raises(UserError, match="rank is 0"):
        plan_adapters(vit(), ["fc1"], 0)
    with pytest.raises(UserError, match="nothing would train"):
        LowRankParticles(vit(), 2, targets=[])
    with pytest.raises(UserError, match="not a linear layer"):
        LowRankParticles(vit(), 2, targets=["fc1"], head="backbone")
