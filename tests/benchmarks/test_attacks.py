"""Attacks on the averaged prediction: against torchattacks on a merged backbone, pyautoattack, and their own rules."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from baselines.full_rank import FullRankParticles
from bella.lowrank import LowRankParticles
from bella.particles import Particles
from benchmarks.attacks import AveragedClassifier, attack_name, misclassified, worst_case

EPSILON = 8 / 255


def network(classes: int = 5, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8 * 7 * 7, classes)).to(dtype)


def particles_of(kind: str, count: int, classes: int = 5, dtype: torch.dtype = torch.float64) -> Particles:
    model = network(classes, dtype)
    if kind == "full-rank":
        return FullRankParticles(model, count, initial_std=0.3)
    return LowRankParticles(model, count, targets=["0", "2"], initial_b_std=0.3)


def images(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize("kind", ["full-rank", "low-rank"])
@pytest.mark.parametrize("name", ["FGSM", "PGD"])
def test_attacks_on_one_particle_equal_those_on_the_merged_backbone(kind: str, name: str) -> None:
    particles = particles_of(kind, 1)
    merged = particles.merge(0).eval()
    x = images(6)
    targets = merged(x).argmax(-1)
    options = {"FGSM": {}, "PGD": {"alpha": EPSILON / 8, "steps": 20, "random_start": True}}[name]
    made = []
    for model in (AveragedClassifier(particles, "probabilities"), merged):
        torch.manual_seed(1)
        made.append(getattr(torchattacks, name)(model, eps=EPSILON, **options)(x, targets))
    assert float((made[0] - made[1]).abs().max()) <= 1e-9
    assert float((made[1] - x).abs().max()) > EPSILON / 2


def test_the_attacked_gradient_is_the_averaged_predictions() -> None:
    particles = particles_of("low-rank", 3)
    x = images(2).requires_grad_()
    loss = nn.functional.cross_entropy(AveragedClassifier(particles, "probabilities")(x), torch.tensor([1, 2]))
    mean = torch.stack([particles.merge(i)(x).softmax(-1) for i in range(3)]).mean(0)
    expected = -(mean[0, 1].log() + mean[1, 2].log()) / 2
    found, own = torch.autograd.grad(loss, x)[0], torch.autograd.grad(expected, x)[0]
    assert float((found - own).abs().max()) < 1e-12


def test_a_confident_average_keeps_its_gradient() -> None:
    particles = particles_of("low-rank", 2, dtype=torch.float32)
    with torch.no_grad():
        particles.model[5].weight.mul_(3000)
    x = images(2, torch.float32).requires_grad_()
    wrong = (particles(x).mean(0).argmax(-1) + 1) % 5
    loss = nn.functional.cross_entropy(AveragedClassifier(particles, "probabilities")(x), wrong)
    assert float(torch.autograd.grad(loss, x)[0].abs().max()) > 0


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
@pytest.mark.parametrize("mode", ["direct", "transfer"])
def test_worst_case_only_grows_and_stays_in_the_ball(name: str, mode: str) -> None:
    particles = particles_of("low-rank", 3)
    judged = AveragedClassifier(particles, "probabilities")
    attacked = judged if mode == "direct" else AveragedClassifier(particles, "probabilities", slice(0, 1))
    x = images(12)
    targets = judged(x).argmax(-1)
    targets[0] = (targets[0] + 1) % 5  # wrong from the start
    before = torch.zeros(12, dtype=torch.bool)
    for result in worst_case(attacked, judged, name, x, targets, (0.03, 0.003, 0.1), steps=5, classes=5, batch_size=5):
        assert bool((result.broken | ~before).all())
        assert bool(result.broken[0])
        assert torch.equal(result.images[0], x[0])
        assert float((result.images - x).abs().max()) <= result.epsilon + 1e-9
        assert float(result.images.min()) >= 0
        assert float(result.images.max()) <= 1
        assert torch.equal(misclassified(judged, result.images, targets, 5), result.broken)
        before = result.broken
    assert result.epsilon == 0.1
    assert int(before.sum()) > 1


def test_the_same_attack_twice_gives_the_same_pixels() -> None:
    judged = AveragedClassifier(particles_of("low-rank", 2), "probabilities")
    x = images(4)
    targets = judged(x).argmax(-1)
    runs = [list(worst_case(judged, judged, "pgd", x, targets, (0.01,), steps=3, classes=5)) for _ in range(2)]
    assert torch.equal(runs[0][0].images, runs[1][0].images)


@pytest.mark.parametrize("classes", [3, 10])
def test_autoattack_breaks_what_pyautoattack_breaks(classes: int) -> None:
    import pyautoattack

    judged = AveragedClassifier(particles_of("low-rank", 2, classes, torch.float32), "probabilities")
    x = images(8, torch.float32)
    targets = judged(x).argmax(-1)
    epsilon = 0.02
    pgd = {r.epsilon: r for r in worst_case(judged, judged, "pgd", x, targets, (epsilon,), classes=classes)}
    ours = next(iter(worst_case(judged, judged, "autoattack", x, targets, (epsilon,), classes=classes, start=pgd)))
    assert bool((ours.broken | ~pgd[epsilon].broken).all())  # the image-wise minimum with PGD
    attacks = None if classes >= 4 else ["apgd-ce", "square"]
    other = pyautoattack.AutoAttack(
        judged, norm="Linf", eps=epsilon, seed=0, attacks=attacks, version="standard" if attacks is None else "custom"
    )
    adversarial = other.run_standard_evaluation(x, targets, batch_size=8)[0]
    theirs = misclassified(judged, adversarial, targets, 8)
    assert 0 < int(ours.broken.sum()) < 8
    assert torch.equal(ours.broken, theirs)


def test_autoattack_is_called_what_it_is() -> None:
    assert attack_name("autoattack", 3) == "apgd-ce+square"
    assert attack_name("autoattack", 4) == "autoattack"
    with pytest.raises(Exception, match="did you mean 'pgd'"):
        attack_name("pdg", 10)
