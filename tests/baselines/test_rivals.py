"""The methods that the paper left out, each against its library, a closed form, or a reference written from the formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_network, make_points
from torch import Tensor, nn

from baselines.annealed_svgd import AnnealedSVGD
from baselines.batch_ensemble import BatchEnsembleParticles
from baselines.full_rank import FullRankParticles
from baselines.function_repulsion import FunctionRepulsion
from baselines.laplace import (
    LastLayerLaplace,
    LinearisedLowRankParticles,
    LowRankLaplace,
    ManyHeadsParticles,
    evidence_precision,
    fisher_diagonal,
)
from baselines.layerwise_svgd import LayerwiseSVGD
from baselines.mc_dropout import DropoutLowRankParticles, DropoutParticles
from baselines.swag import SWAG
from baselines.variational import VariationalLowRankParticles
from bella.errors import UserError
from bella.fit import Recipe, fit, loss_and_gradients
from bella.inference import Independent, Inference
from bella.lowrank import LowRankParticles
from bella.particles import Particles
from bella.predictive import predict
from bella.svgd import SVGD

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.02)
LOW: dict[str, Any] = {"targets": ["0", "2"], "head": "4", "rank": 2}


def low(n: int = 3, **options: Any) -> LowRankParticles:
    return LowRankParticles(make_network(), n, **{**LOW, "initial_b_std": 0.5, **options})


def trained(particles: Particles, rule: Inference | None = None, recipe: Recipe = RECIPE) -> Particles:
    fit(particles, rule or Independent(), make_points(80, 1), make_points(40, 2), recipe, seed=5, device=CPU)
    return particles


# ---- variants of SVGD ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full-rank", "low-rank"])
def test_layerwise_svgd_is_svgd_of_each_layer_alone(kind: str) -> None:
    particles: Particles = FullRankParticles(make_network(), 4, head="4", initial_std=0.5) if kind == "full-rank" else low(4)
    torch.manual_seed(1)
    particles.zero_gradients()
    for stored in particles.storage:
        assert stored.grad is not None
        stored.grad.copy_(torch.randn_like(stored))
    expected = {}
    for name in ("0", "2", "4"):
        leaves = {key: leaf for key, leaf in particles.stacked_parameters().items() if key.startswith(f"{name}.")}
        theta = np.concatenate([leaf.detach().flatten(1).numpy() for leaf in leaves.values()], 1)
        gradients = np.concatenate([leaf.grad.flatten(1).numpy() for leaf in leaves.values() if leaf.grad is not None], 1)
        distances = np.linalg.norm(theta[:, None] - theta[None], axis=-1)
        h = np.median(distances[np.triu_indices(4, 1)]) ** 2 / math.log(4)
        K = np.exp(-(distances**2) / h)
        # sum_j k_ij grad_j - gamma d/d theta_j k_ij, and -d/d theta_j k_ij = (2/h) k_ij (theta_j - theta_i)
        expected[name] = (K @ gradients + 0.7 * (2 / h) * (K @ theta - K.sum(1, keepdims=True) * theta)) / 4
    LayerwiseSVGD(repulsion=0.7).transform(particles, 100)
    for name, phi in expected.items():
        leaves = {key: leaf for key, leaf in particles.stacked_parameters().items() if key.startswith(f"{name}.")}
        found = np.concatenate([leaf.grad.flatten(1).numpy() for leaf in leaves.values() if leaf.grad is not None], 1)
        assert np.abs(found - phi).max() <= 1e-10 * np.abs(phi).max(), name


def test_annealed_svgd_is_svgd_of_weaker_gradients() -> None:
    rule = AnnealedSVGD(repulsion=0.5, cycles=2, settle=0.2, power=2.0)
    assert [rule.driving(step, 100) for step in (0, 20, 39, 40, 60, 79, 80, 99)] == pytest.approx(
        [0.0, 0.25, (39 / 40) ** 2, 0.0, 0.25, (39 / 40) ** 2, 1.0, 1.0]
    )
    hyperbolic = AnnealedSVGD(schedule="hyperbolic", cycles=1, settle=0.0, power=3.0)
    assert hyperbolic.driving(50, 100) == pytest.approx(math.tanh(0.65**3))
    first, second = low(4), low(4)
    for particles, share in ((first, 1.0), (second, 0.25)):
        torch.manual_seed(1)
        particles.zero_gradients()
        assert particles.storage[0].grad is not None
        particles.storage[0].grad.copy_(share * torch.randn_like(particles.storage[0]))
    rule.begin_step(20, 100)
    rule.transform(first, 10)
    SVGD(repulsion=0.5).transform(second, 10)
    assert first.storage[0].grad is not None
    assert torch.allclose(first.storage[0].grad, second.storage[0].grad, rtol=1e-10, atol=0)
    with pytest.raises(UserError, match="schedule"):
        AnnealedSVGD(schedule="linear")


def test_function_repulsion_is_the_gradient_of_the_log_density_estimate() -> None:
    """Autograd of gamma * log sum_j k(f_i, f_j), with f_j and h held fixed."""
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    h = 0.8
    found = FunctionRepulsion(repulsion=0.3, bandwidth=h).prediction_gradient(logits, 100)
    f = torch.softmax(logits, -1).flatten(1)
    K = torch.exp(-(f[:, None] - f.detach()[None]).square().sum(-1) / h)
    (0.3 * K.sum(1).log().sum()).backward()
    assert torch.allclose(found, logits.grad, rtol=1e-10)
    f = f.detach()
    closer = torch.softmax(logits.detach() - 0.1 * found, -1).flatten(1)  # descending pushes apart
    assert float(torch.pdist(closer).sum()) > float(torch.pdist(f).sum())


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_pushed_predictions_give_the_same_gradients_in_chunks(chunk_size: int | None) -> None:
    points = make_points(12, 3)
    rule = FunctionRepulsion(repulsion=0.5)

    def gradients(**options: Any) -> Tensor:
        particles = low(4, **options)
        particles.zero_gradients()
        loss_and_gradients(particles, particles.prepare(points.x), points.targets.expand(4, -1), rule, 80)
        assert particles.storage[0].grad is not None
        return particles.storage[0].grad

    whole = gradients()
    assert torch.allclose(gradients(chunk_size=chunk_size), whole, rtol=1e-9, atol=1e-12)
    particles = low(4)
    particles.zero_gradients()
    loss_and_gradients(particles, particles.prepare(points.x), points.targets.expand(4, -1))
    assert not torch.allclose(particles.storage[0].grad, whole)  # type: ignore[arg-type]


# ---- SWAG ----------------------------------------------------------------------------------------------------------


def test_swag_moments_are_those_of_the_path_and_draws_have_them() -> None:
    particles, path, total = low(2), [], 40
    rule = SWAG(trajectories=2, start=0.5, snapshots=10, max_rank=4)
    torch.manual_seed(0)
    for step in range(total):
        particles.storage[0].data += 0.1 * torch.randn_like(particles.storage[0])
        rule.end_step(particles, step, total)
        if step in (20, 22, 24, 26, 28, 31, 33, 35, 37, 39):  # evenly spread, the last step among them
            path.append(particles.storage[0].detach().clone())
    walked = torch.stack(path)  # (10, 2, d)
    mean, variance = walked.mean(0), walked.var(0, unbiased=False)
    state = rule.state()
    assert torch.allclose(state["mean/0"], mean)
    assert torch.allclose(state["squares/0"] / 10, variance, atol=1e-10)
    deviations = torch.stack([walked[t] - walked[: t + 1].mean(0) for t in range(6, 10)])
    assert torch.allclose(state["columns/0"], deviations)
    drawn = low(6000)
    found = rule.draw(particles, drawn, make_points(4, 1), CPU, 3)
    assert found == {"snapshots": 10.0, "columns": 4.0}
    expected = variance[0] / 2 + deviations[:, 0].square().sum(0) / (2 * 3)
    own = drawn.storage[0].detach()[::2]  # those of the first trajectory
    assert torch.allclose(own.mean(0), mean[0], atol=float(6 * expected.max().sqrt() / 3000**0.5))
    assert torch.allclose(own.var(0), expected, rtol=0.2)
    again = low(6)
    restored = SWAG(trajectories=2, start=0.5, snapshots=10, max_rank=4)
    restored.restore(state)
    restored.draw(particles, again, make_points(4, 1), CPU, 3)
    assert torch.equal(again.storage[0], drawn.storage[0][:6])


def test_swag_keeps_small_variances_of_weights_near_one_in_float32() -> None:
    particles = FullRankParticles(make_network(torch.float32), 1, head="4")
    rule, path = SWAG(start=0.0, snapshots=20), []
    torch.manual_seed(0)
    for step in range(20):
        for stored in particles.storage:
            stored.data = 1 + 1e-4 * torch.randn_like(stored)
        path.append(particles.storage[0].detach().double().clone())
        rule.end_step(particles, step, 20)
    found = rule.state()["squares/0"] / 20
    assert torch.allclose(found.double(), torch.stack(path).var(0, unbiased=False), rtol=0.02)


def test_swag_keeps_its_rate() -> None:
    rule = SWAG(start=0.5, swa_rate=0.3)
    rates = [rule.learning_rate(step, 4, 40) for step in range(40)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert set(rates[20:]) == {0.3}
    assert min(rates[4:]) == 0.3
    with pytest.raises(UserError, match="fewer than two snapshots"):
        rule.draw(low(1), low(2), make_points(4, 1), CPU, 0)  # never told of a step


# ---- Laplace -------------------------------------------------------------------------------------------------------


class Factors(nn.Module):
    """One low-rank particle as a plain module with its numbers as parameters, in the order of the particles' buffer."""

    def __init__(self, particles: LowRankParticles) -> None:
        super().__init__()
        self.base = make_network()
        self.base.requires_grad_(False)
        numbers = {name: nn.Parameter(leaf[0].detach().clone()) for name, leaf in particles.stacked_parameters().items()}
        self.names = list(numbers)
        self.numbers = nn.ParameterList(numbers.values())

    def forward(self, x: Tensor) -> Tensor:
        own = dict(zip(self.names, self.numbers, strict=True))
        for i in (0, 2):
            W = self.base[i].weight + own[f"{i}.B"] @ own[f"{i}.A"]  # type: ignore[operator]
            x = torch.tanh(F.linear(x, W, self.base[i].bias))  # type: ignore[arg-type]
        return F.linear(x, own["4.weight"], own["4.bias"])


def test_the_fisher_diagonal_is_that_of_laplace_torch() -> None:
    import laplace

    particles = low(1)
    points = make_points(40, 1)
    particles.prepare(points.x)
    found = fisher_diagonal(particles, points, CPU)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(points.x, points.targets), batch_size=16)
    oracle = laplace.DiagLaplace(Factors(particles), "classification")
    oracle.fit(loader)
    assert torch.allclose(found, oracle.H.double(), rtol=1e-6, atol=1e-9)


def test_the_evidence_is_largest_at_the_precision_found() -> None:
    generator = torch.Generator().manual_seed(0)
    fisher = torch.rand(300, generator=generator).double() ** 8 * 1000
    mode = torch.randn(300, generator=generator).double() * 0.3

    def evidence(precision: float) -> float:
        return float(-0.5 * (precision * mode.square().sum() + (fisher + precision).log().sum() - 300 * math.log(precision)))

    best = evidence_precision(mode, fisher)
    assert all(evidence(best) >= evidence(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))


def test_draws_of_the_low_rank_laplace_have_its_variance() -> None:
    mode = trained(low(1))
    drawn = low(4000)
    LowRankLaplace(prior_precision=2.0).draw(mode, drawn, make_points(80, 1), CPU, 1)
    assert isinstance(mode, LowRankParticles)
    expected = 1 / (fisher_diagonal(mode, make_points(80, 1), CPU) + 2.0)
    assert torch.allclose(drawn.storage[0].var(0), expected, rtol=0.15)
    with pytest.raises(UserError, match="needs low-rank particles"):
        LowRankLaplace().check(FullRankParticles(make_network(), 1, head="4"))
    with pytest.raises(UserError, match="a head that trains"):
        LastLayerLaplace().check(low(1, head=None))


def test_last_layer_draws_have_the_covariance_of_the_closed_form() -> None:
    """At equal probabilities the Gauss-Newton matrix is exactly a Kronecker product, (diag p - p p^T) x sum_i h_i h_i^T."""
    mode = ManyHeadsParticles(make_network(), 1, head="4")
    points = make_points(300, 1)  # more than one batch
    with torch.no_grad():
        for part in ("weight", "bias"):
            mode.stacked_parameters()[f"4.{part}"].zero_()
    drawn = ManyHeadsParticles(make_network(), 8000, head="4", seeds=[7] * 8000)
    LastLayerLaplace(prior_precision=3.0).draw(mode, drawn, points, CPU, 2)
    h = mode.merge(0)[:4](points.x).detach()  # type: ignore[index]
    G = torch.eye(3).double() / 3 - torch.ones(3, 3).double() / 9
    covariance = torch.linalg.inv(torch.kron(G, h.T @ h) + 3.0 * torch.eye(24).double())
    found = torch.cov(drawn.stacked_parameters()["4.weight"][0].flatten(1).detach().T)
    assert float((found - covariance).abs().max()) < 0.06 * float(covariance.diagonal().max())
    assert torch.equal(drawn.weights(7)["0.weight"], mode.weights(0)["0.weight"])
    x = points.x[:5]
    assert torch.allclose(drawn(x)[[0, 7]], torch.stack([drawn.merge(i)(x) for i in (0, 7)]), rtol=1e-9, atol=1e-12)


def test_one_network_with_many_heads_is_what_it_merges_to_and_alone_what_a_single_network_is() -> None:
    x = make_points(6, 4).x
    many = ManyHeadsParticles(make_network(), 5, head="4", initial_std=0.3, seeds=3, chunk_size=2)
    merged = torch.stack([many.merge(i)(x) for i in range(5)])
    assert torch.allclose(many(x), merged, rtol=1e-9, atol=1e-12)
    assert torch.allclose(many(x.expand(5, -1, -1), per_particle=True), merged, rtol=1e-9, atol=1e-12)
    assert float(torch.pdist(merged.detach().flatten(1)).min()) > 0
    head = make_network()[4]
    assert many.trainable_parameters == sum(p.numel() for p in make_network().parameters()) + 4 * sum(
        p.numel() for p in head.parameters()
    )
    alone = trained(ManyHeadsParticles(make_network(), 1, head="4", seeds=3))
    assert torch.equal(alone(x), trained(FullRankParticles(make_network(), 1, head="4", seeds=3))(x))


def linearised(n: int, **options: Any) -> LinearisedLowRankParticles:
    return LinearisedLowRankParticles(make_network(), n, **{**LOW, "initial_b_std": 0.5, **options})


def test_a_linearised_particle_is_the_first_order_taylor_series_around_the_mean() -> None:
    particles, x, base = linearised(4, chunk_size=3), make_points(6, 4).x, make_network()
    mean = {name: leaf.mean(0).detach() for name, leaf in particles.stacked_parameters().items()}

    def network(own: dict[str, Tensor]) -> Tensor:
        weights = {f"{i}.weight": base.get_parameter(f"{i}.weight") + own[f"{i}.B"] @ own[f"{i}.A"] for i in (0, 2)}
        return torch.func.functional_call(base, weights | {name: own[name] for name in ("4.weight", "4.bias")}, (x,))

    J = torch.func.jacrev(network)(mean)
    for i, found in enumerate(particles(x)):
        expected = network(mean)
        for name, leaf in particles.stacked_parameters().items():
            expected = expected + torch.einsum("bc...,...->bc", J[name], leaf[i].detach() - mean[name])
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10)
    assert torch.allclose(particles(x).mean(0), network(mean), rtol=1e-8, atol=1e-10)
    with pytest.raises(UserError, match="no plain network"):
        particles.merge(0)
    plain = linearised(4, linearised=False)
    assert torch.equal(plain(x), low(4)(x))
    assert torch.allclose(plain.merge(1)(x), plain(x)[1], rtol=1e-8, atol=1e-10)


def test_linearised_convolutions_can_be_attacked() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(24, 3)).double().eval()
    particles = LinearisedLowRankParticles(network, 2, targets=["0", "2", "4"], rank=2, head="6", initial_b_std=0.3)
    images = torch.rand(2, 3, 6, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(particles, (images,))


def test_the_linearised_laplace_has_the_predictive_distribution_of_laplace_torch() -> None:
    import laplace

    points, x = make_points(80, 1), make_points(6, 4).x
    mode, drawn = trained(linearised(1)), linearised(4000)
    found = LowRankLaplace().draw(mode, drawn, points, CPU, 1)
    logits = predict(drawn, make_points(6, 4), batch_size=6, device=CPU)
    factors = Factors(mode)  # type: ignore[arg-type]
    oracle = laplace.DiagLaplace(factors, "classification", prior_precision=found["prior_precision"])
    oracle.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(points.x, points.targets), batch_size=16))
    mean, covariance = oracle._glm_predictive_distribution(x)
    assert torch.allclose(logits.mean(0).double(), mean.double(), rtol=1e-4, atol=1e-5)
    for own, expected in zip(logits.unbind(1), covariance.double(), strict=True):
        assert float((torch.cov(own.T).double() - expected).abs().max()) < 0.1 * float(expected.max())


# ---- draws of shared weights ---------------------------------------------------------------------------------------


def test_variational_gradients_are_those_of_the_objective() -> None:
    n_train, std = 50, 0.7
    particles = VariationalLowRankParticles(make_network(), 4, **LOW, samples=3, initial_b_std=0.4)
    points = make_points(12, 3)
    particles.train()
    particles.zero_gradients()
    torch.manual_seed(9)
    loss_and_gradients(particles, particles.prepare(points.x), points.targets.expand(4, -1))
    particles.add_prior_gradient(std, n_train)
    leaves = {name: leaf[0].detach().clone().requires_grad_() for name, leaf in particles.stacked_parameters().items()}
    base = make_network()
    torch.manual_seed(9)
    noise = {name: torch.randn(3, *leaves[f"{name}.A"].shape).double() for name in ("0", "2")}
    objective = torch.zeros((), dtype=torch.float64)
    for s in range(3):
        weights = {"4.weight": leaves["4.weight"], "4.bias": leaves["4.bias"]}
        for name in ("0", "2"):
            A = leaves[f"{name}.A"] + leaves[f"{name}.G"] ** 2 * noise[name][s]
            weights[f"{name}.weight"] = base.get_parameter(f"{name}.weight").detach() + leaves[f"{name}.B"] @ A
        objective = objective + F.cross_entropy(torch.func.functional_call(base, weights, (points.x,)), points.targets) / 3
    prior = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    for name in ("0", "2"):
        q = torch.distributions.Normal(leaves[f"{name}.A"], leaves[f"{name}.G"] ** 2)
        objective = objective + torch.distributions.kl_divergence(q, prior).sum() / n_train
    points_alone = [leaf for name, leaf in leaves.items() if not name.endswith((".A", ".G"))]
    objective = objective - sum(prior.log_prob(leaf).sum() for leaf in points_alone) / n_train
    objective.backward()
    for name, leaf in particles.stacked_parameters().items():
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad[0], leaves[name].grad, rtol=1e-8, atol=1e-10), name  # type: ignore[arg-type]


def shared(kind: str, n: int = 4, **options: Any) -> Particles:
    if kind == "variational":
        return VariationalLowRankParticles(make_network(), n, **LOW, initial_b_std=0.4, **options)
    if kind == "dropout-low-rank":
        return DropoutLowRankParticles(make_network(), n, **LOW, initial_b_std=0.4, **options)
    if kind == "dropout":
        return DropoutParticles(make_network(), n, head="4", dropped=["2", "4"], **options)
    return BatchEnsembleParticles(make_network(), n, head="4", **options)


KINDS = ["variational", "dropout-low-rank", "dropout", "batch-ensemble"]


@pytest.mark.parametrize("kind", KINDS)
def test_shared_weights_are_stored_once_and_members_are_the_models_they_merge_to(kind: str) -> None:
    particles = trained(shared(kind))
    x = make_points(6, 4).x
    particles.eval()
    logits = particles(x)
    assert logits.shape == (4, 6, 3)
    assert torch.equal(particles(x), logits)  # the draws of a prediction are always the same
    assert torch.allclose(torch.stack([particles.merge(i)(x) for i in range(4)]), logits, rtol=1e-5, atol=1e-6)
    assert float(torch.pdist(logits.detach().flatten(1)).min()) > 0
    assert particles.num_rows == 1
    assert particles.trainable_parameters == sum(stored.numel() for stored in particles.storage)
    more = shared(kind, 8).trainable_parameters
    assert more == particles.trainable_parameters or kind == "batch-ensemble"


@pytest.mark.parametrize("kind", KINDS)
def test_shared_weights_learn_and_go_on_from_a_checkpoint(kind: str, tmp_path: Any) -> None:
    from bella.resume import Checkpoints

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int, rate: float) -> None:
        if done == 7:
            raise StoppedError

    arguments = (Independent(), make_points(80, 1), make_points(40, 2), RECIPE)
    undisturbed = trained(shared(kind))
    first = shared(kind)
    with pytest.raises(StoppedError):
        fit(first, *arguments, seed=5, device=CPU, checkpoints=Checkpoints(tmp_path, 0.0), on_step=stop)
    second = shared(kind)
    fit(second, *arguments, seed=5, device=CPU, checkpoints=Checkpoints(tmp_path, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.storage, second.storage, strict=True))
    long = trained(shared(kind), recipe=Recipe(epochs=25, batch_size=16, learning_rate=0.02))
    logits = predict(long, make_points(100, 7), batch_size=50, device=CPU)
    before = predict(shared(kind), make_points(100, 7), batch_size=50, device=CPU)
    targets = make_points(100, 7).targets
    nll = [float(F.nll_loss(z.softmax(-1).mean(0).log(), targets)) for z in (logits, before)]
    assert nll[0] < 0.7 * nll[1]


def test_swag_goes_on_from_a_checkpoint(tmp_path: Any) -> None:
    from bella.resume import Checkpoints

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int, rate: float) -> None:
        if done == 12:
            raise StoppedError

    data = make_points(80, 1), make_points(40, 2), RECIPE
    states = []
    for folder, stopped in ((tmp_path / "a", False), (tmp_path / "b", True)):
        folder.mkdir()
        if stopped:
            with pytest.raises(StoppedError):
                fit(low(1), SWAG(), *data, seed=5, device=CPU, checkpoints=Checkpoints(folder, 0.0), on_step=stop)
        rule = SWAG()
        fit(low(1), rule, *data, seed=5, device=CPU, checkpoints=Checkpoints(folder, 0.0))
        states.append(rule.state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


@pytest.mark.parametrize("kind", ["dropout-low-rank", "dropout"])
def test_dropped_columns_are_bernoulli_and_keep_the_mean(kind: str) -> None:
    particles = shared(kind, 2000, rate=0.3)
    if kind == "dropout":
        assert isinstance(particles, DropoutParticles)
        weights = torch.stack([particles.weights(i)["2.weight"].detach() for i in range(2000)])
        full = particles.leaves(slice(0, 1))["2.weight"].detach()
    else:
        assert isinstance(particles, DropoutLowRankParticles)
        weights = particles.weights(slice(0, 2000))["2.A"].detach()
        full = particles.leaves(slice(0, 1))["2.A"].detach()
    zero = (weights == 0).all(1)  # whole columns
    assert torch.equal((weights == 0).any(1), zero)
    assert float(zero.double().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.allclose(weights.mean(0), full[0], atol=4 * float(full.abs().max()) * (0.3 / 0.7 / 2000) ** 0.5)


def test_batch_ensemble_gradients_are_those_of_the_mean_objective() -> None:
    particles = shared("batch-ensemble", 3, factor_std=0.3)
    points, std, size = make_points(12, 3), 0.7, 50
    particles.zero_gradients()
    loss_and_gradients(particles, particles.prepare(points.x), points.targets.expand(3, -1))
    particles.add_prior_gradient(std, size)
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in particles.stacked_parameters().items()}
    theta_0 = dict(make_network().named_parameters())
    objective = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        y = points.x
        for name in ("0", "2"):
            r, s = leaves[f"{name}.weight.r"][0, i], leaves[f"{name}.weight.s"][0, i]
            y = torch.tanh(((y * s) @ leaves[f"{name}.weight"][0].T) * r + leaves[f"{name}.bias"][0])
            objective = objective + ((r - 1).square().sum() + (s - 1).square().sum()) / (2 * std**2 * size) / 3
        y = y @ leaves["4.weight"][0, i].T + leaves["4.bias"][0, i]
        head = leaves["4.weight"][0, i].square().sum() + leaves["4.bias"][0, i].square().sum()
        objective = objective + (F.cross_entropy(y, points.targets) + head / (2 * std**2 * size)) / 3
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        objective = objective + (leaves[name][0] - theta_0[name].detach()).square().sum() / (2 * std**2 * size)
    objective.backward()
    for name, leaf in particles.stacked_parameters().items():
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad, leaves[name].grad, rtol=1e-8, atol=1e-11), name  # type: ignore[arg-type]


def test_batch_ensemble_members_are_the_formula() -> None:
    particles = shared("batch-ensemble", 3, factor_std=0.3)
    leaves = particles.stacked_parameters()
    x = make_points(5, 0).x
    for i, found in enumerate(particles(x)):
        y = x
        for name in ("0", "2"):
            r, s = leaves[f"{name}.weight.r"][0, i], leaves[f"{name}.weight.s"][0, i]
            y = torch.tanh(((y * s) @ leaves[f"{name}.weight"][0].T) * r + leaves[f"{name}.bias"][0])
        expected = y @ leaves["4.weight"][0, i].T + leaves["4.bias"][0, i]
        assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shared("dropout", rate=1.5), "rate is 1.5"),
        (lambda: shared("variational", initial_noise=0.0), "initial_noise"),
        (lambda: shared("dropout-low-rank", samples=9), "samples is 9"),
        (lambda: SWAG(snapshots=1), "snapshots is 1"),
        (lambda: LowRankLaplace(prior_precision=-1.0), "prior_precision"),
        (lambda: LayerwiseSVGD(repulsion=-1.0), "repulsion"),
        (lambda: FunctionRepulsion(bandwidth="mean"), "bandwidth"),
        (lambda: DropoutParticles(make_network(), 2), "name the layers"),
    ],
)
def test_what_is_out_of_range_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
