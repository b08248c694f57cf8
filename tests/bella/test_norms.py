"""Frozen batch norms that convolutions do: the same numbers, and everything as it was when it is taken apart."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from bella.lowrank import LowRankParticles


def with_statistics(model: nn.Module) -> nn.Module:
    """Norms as a training leaves them: none is close to the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.double()


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "targets", "head"),
    [
        ("tf_efficientnet_lite0", ["conv_pw", "conv_pwl"], "classifier"),
        ("tf_efficientnet_lite0", ["conv_dw"], "classifier"),
        ("resnet18", ["layer2.*.conv2", "layer3.0.downsample.0"], "fc"),
    ],
)
def test_no_norm_is_left_and_numbers_are_those_of_the_given_model(name: str, targets: list[str], head: str) -> None:
    model = with_statistics(timm.create_model(name, num_classes=5))
    given = {key: value.clone() for key, value in model.state_dict().items()}
    before = norms(model)
    particles = LowRankParticles(model, 2, targets=targets, head=head, initial_b_std=0.1)
    x = torch.rand(3, 3, 48, 48, dtype=torch.float64)
    logits = particles(x)
    assert before
    assert not norms(particles.model)
    for i in range(2):
        merged = particles.merge(i)
        assert norms(merged) == before
        torch.testing.assert_close(logits[i], merged(x), rtol=1e-9, atol=1e-9)
        kept = {k: v for k, v in merged.state_dict().items() if not any(t.split(".")[-1] in k for t in [*targets, head])}
        assert all(torch.equal(value, given[key]) for key, value in kept.items())
    torch.testing.assert_close(particles(x), logits)  # a merge has left nothing behind
    particles.float()
    assert norms(particles.model) == before
    torch.testing.assert_close(particles(x.float()), logits.float(), rtol=1e-3, atol=1e-3)


def test_gradients_are_those_of_the_norms() -> None:
    found = []
    for folded in (True, False):
        torch.manual_seed(0)
        model = with_statistics(timm.create_model("tf_efficientnet_lite0", num_classes=5))
        particles = LowRankParticles(model, 2, targets=["conv_pw", "conv_pwl"], head="classifier", initial_b_std=0.1)
        particles.zero_gradients()
        x = torch.rand(3, 3, 48, 48, dtype=torch.float64, requires_grad=True)
        if not folded:
            particles.fold_norms = lambda inputs: None  # type: ignore[method-assign]
        particles(x).logsumexp(-1).sum().backward()
        assert bool(norms(particles.model)) != folded
        assert particles.storage[0].grad is not None
        assert x.grad is not None
        found.append((particles.storage[0].grad, x.grad))
    for with_fold, without in zip(*found, strict=True):
        torch.testing.assert_close(with_fold, without, rtol=1e-8, atol=1e-9 * float(without.abs().max()))


def test_a_first_pass_without_gradients_does_not_forbid_them_later() -> None:
    model = with_statistics(timm.create_model("resnet18", num_classes=5))
    particles = LowRankParticles(model, 2, targets=["layer4.1.conv2"], head="fc", initial_b_std=0.1)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        particles(x)
    assert not norms(particles.model)
    particles(x.requires_grad_()).sum().backward()
    assert x.grad is not None


class TwoUses(nn.Module):
    """The output of its convolution goes to a norm, and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head(self.other(self.norm(y) + y).mean((2, 3)))


def test_a_convolution_whose_output_is_used_twice_keeps_its_norm() -> None:
    particles = LowRankParticles(with_statistics(TwoUses()), 2, targets=["conv", "other"], head="head", initial_b_std=0.5)
    x = torch.rand(3, 3, 4, 4, dtype=torch.float64)
    logits = particles(x)
    assert norms(particles.model) == ["norm"]
    torch.testing.assert_close(logits[1], particles.merge(1)(x))
