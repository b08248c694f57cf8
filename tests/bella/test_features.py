"""What is shared in front of the fan-out: computed once an example, with the numbers of computing it each time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import timm
import torch
from torch import Tensor, nn

from baselines.full_rank import FullRankParticles
from bella import features, fit
from bella.features import FeatureCache
from bella.inference import Independent
from bella.lowrank import LowRankParticles
from bella.particles import Particles

CPU = torch.device("cpu")


@dataclass
class Images:
    """Examples that count how often each is read."""

    x: Tensor
    targets: Tensor
    reads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self, indices: Tensor, device: torch.device) -> Tensor:
        self.reads += indices.tolist()
        return self.x[indices]


def images(count: int, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    return Images(x, torch.randint(3, (count,), generator=generator))


def late_vit() -> LowRankParticles:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=4)
    return LowRankParticles(model, 3, targets=["blocks.3.mlp.fc1", "blocks.3.mlp.fc2"], rank=2, head="head", seeds=1)


def late_convolutions() -> LowRankParticles:
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=3).to(memory_format=torch.channels_last)
    return LowRankParticles(model, 2, targets=["blocks.4.*.conv_pw"], rank=2, head="classifier", seeds=1, chunk_size=1)


@pytest.mark.parametrize("make", [late_vit, late_convolutions])
def test_training_with_kept_features_gives_the_same_numbers(make, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    found = []
    for limit in (features.LIMIT_BYTES, 0):
        monkeypatch.setattr(FeatureCache.__init__, "__defaults__", (limit,))
        particles, training, validation = make(), images(11), images(5, 1)
        recipe = fit.Recipe(epochs=3, batch_size=4, learning_rate=1e-2)
        history = fit.fit(particles, Independent(), training, validation, recipe, seed=3, device=CPU)
        epochs_read = 1 if limit else 3
        assert sorted(training.reads) == sorted([*range(11)] * epochs_read)
        assert len(validation.reads) == 5 * epochs_read
        found.append((torch.cat([t.flatten() for t in particles.stacked_parameters().values()]).detach(), history))
    (kept, with_cache), (computed, without) = found
    assert float((kept - computed).abs().max()) <= 1e-5 * float(computed.abs().max())
    assert [e.validation_nll for e in with_cache.epochs] == pytest.approx([e.validation_nll for e in without.epochs], rel=1e-5)


def test_a_batch_of_kept_features_equals_one_computed() -> None:
    particles, split = late_convolutions(), images(9)
    cache = FeatureCache(particles, split, CPU)
    for indices in (torch.arange(0, 4), torch.arange(4, 8), torch.arange(8, 9)):
        cache.prepare(indices)
    read = len(split.reads)
    mixed = torch.tensor([7, 0, 3, 5])
    with torch.no_grad():
        kept, computed = (particles.chunk_logits(p, slice(0, 2)) for p in (cache.prepare(mixed), particles.prepare(split.x[mixed])))
    assert len(split.reads) == read
    assert torch.allclose(kept, computed, rtol=1e-5, atol=1e-6)
    cache.prepare(torch.tensor([1, 2]))  # no batch of two has been seen, so it is computed
    assert len(split.reads) == read + 2


class TakesPixels(nn.Module):
    """A model whose first layer is adapted: nothing stands in front of it but the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 32 * 32, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.flatten(1)))


@pytest.mark.parametrize(
    "make", [lambda: FullRankParticles(TakesPixels(), 2), lambda: LowRankParticles(TakesPixels(), 2, targets=["first"])]
)
def test_what_cannot_be_kept_is_computed(make) -> None:  # type: ignore[no-untyped-def]
    particles: Particles = make()
    split = images(4)
    limited = FeatureCache(particles, split, CPU, limit_bytes=1)
    for _ in range(2):
        limited.prepare(torch.arange(4))
    assert len(split.reads) == 8
