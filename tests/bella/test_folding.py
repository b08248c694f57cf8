"""Where the batch is repeated, what runs once, and what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from bella.errors import UserError
from bella.lowrank import LowRankParticles


def vit_particles(targets: list[str], n: int = 4, chunk_size: int | None = None) -> LowRankParticles:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=4).double()
    return LowRankParticles(model, n, targets=targets, head="head", initial_b_std=0.1, chunk_size=chunk_size)


def found_path(particles: LowRankParticles, x: Tensor) -> str | None:
    particles(x)
    assert particles._fan_out is not None
    return particles._fan_out.path


@pytest.mark.parametrize(
    ("targets", "path"),
    [(["fc1"], "blocks.0"), (["blocks.2.mlp.fc2", "blocks.3.*.proj"], "blocks.2"), ([], "head")],
)
def test_fan_out_is_the_innermost_block_with_shared_input(targets: list[str], path: str) -> None:
    assert found_path(vit_particles(targets), torch.rand(2, 3, 32, 32).double()) == path


def test_fan_out_never_lies_inside_a_residual_branch() -> None:
    model = timm.create_model("resnet18", num_classes=5).double()
    particles = LowRankParticles(model, 2, targets=["layer2.0.downsample.0"], head="fc", initial_b_std=0.1)
    x = torch.rand(1, 3, 32, 32).double()
    assert found_path(particles, x) == "layer2.0"
    assert torch.allclose(particles(x)[1], particles.merge(1)(x))


def test_the_shared_prefix_runs_once_on_b_examples_whatever_the_chunks() -> None:
    particles = vit_particles(["blocks.2.mlp.fc1"], n=5, chunk_size=2)
    x = torch.rand(3, 3, 32, 32).double()
    particles(x)
    batches: dict[str, list[int]] = {"blocks.1": [], "blocks.3": []}
    for name, seen in batches.items():
        # An inner layer: its hook fires only where something is computed.
        layer = particles.model.get_submodule(f"{name}.norm1")
        layer.register_forward_hook(lambda m, a, o, seen=seen: seen.append(a[0].shape[0]))
    particles(x)
    assert batches == {"blocks.1": [3], "blocks.3": [6, 6, 3]}


def test_gradients_reach_the_inputs_through_the_prefix() -> None:
    particles = vit_particles(["blocks.2.mlp.fc1"], n=3, chunk_size=2)
    x = torch.rand(2, 3, 32, 32).double().requires_grad_()
    particles(x).square().mean(0).sum().backward()
    expected = torch.zeros_like(x)
    for i in range(3):
        copy = x.detach().clone().requires_grad_()
        particles.merge(i)(copy).square().sum().backward()
        assert copy.grad is not None
        expected += copy.grad / 3
    assert torch.allclose(x.grad, expected, atol=1e-10)


def test_nothing_is_left_on_the_model_after_a_pass_that_fails() -> None:
    particles = vit_particles(["blocks.2.mlp.fc1"])
    x = torch.rand(2, 3, 32, 32).double()
    expected = particles(x)

    def fail(*_: object) -> None:
        raise RuntimeError("boom")

    hook = particles.model.get_submodule("blocks.3").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="boom"):
        particles(x)
    hook.remove()
    assert not any("forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in particles.model.modules())
    assert torch.equal(particles(x), expected)


class MixesExamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x - x.mean(0)


class ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x @ self.layer.weight.T)


class TokensFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:  # (b, tokens, d), computed as (tokens, b, d)
        return self.layer(x.transpose(0, 1)).transpose(0, 1).sum(1)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (MixesExamples(), torch.rand(2, 4), "cannot be folded"),
        (TokensFirst(), torch.rand(2, 6, 4), "cannot be folded"),
        (ReadsWeight(), torch.rand(2, 4), "targets: layer is never called"),
    ],
)
def test_what_cannot_be_folded_is_refused(model: nn.Module, x: Tensor, message: str) -> None:
    targets = ["layer", "other"] if isinstance(model, ReadsWeight) else ["layer"]
    with pytest.raises(UserError, match=message):
        LowRankParticles(model, 2, targets=targets)(x)


def test_batch_norm_without_statistics_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(UserError, match=r"1 \(BatchNorm1d\) has no stored statistics"):
        LowRankParticles(model, 2, targets=["0"])
