"""`bella speed`: a training step of ours against what people would use instead, and against the limit.

All contenders are measured in one process, in turns, so that a machine's moods fall on each alike; seconds are medians.

bella       n low-rank particles in one folded pass, SVGD, AdamW
peft        PEFT with n adapters on one backbone, activated in turn, AdamW
copies      n deep copies of backbone and adapter, in turn: what the paper's released code does
full_rank   n full-rank particles, SVGD, AdamW
one         one low-rank particle on n * b examples
limit       forward and input gradient of the frozen backbone alone, on n * b examples
"""

from __future__ import annotations

import copy
import dataclasses
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.full_rank import FullRankParticles
from bella.costs import count_parameters, peak_memory, resident_bytes
from bella.errors import UserError
from bella.features import FeatureCache
from bella.fit import Recipe, optimizer_for, train_step
from bella.inference import Independent, Inference
from bella.lowrank import LowRankParticles, plan_adapters
from bella.particles import Particles
from bella.predictive import autocast
from bella.svgd import SVGD
from benchmarks import environment
from benchmarks.backbones import parse
from benchmarks.isolated import call_isolated
from benchmarks.onednn import fast_linear
from benchmarks.suite_costs import available_bytes
from benchmarks.tables import BYTE_UNITS, format_units


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        backbone: theta_0's name; its weights are random.
        particles: n.
        batch_size: b.
        rank: r.
        targets: patterns of adapted layers; None: the backbone's own.
        image_size: S.
        chunk_size: particles computed at once; None: all.
        epochs: passes over the same batches; from the second on what comes in front of the fan-out is known.
        batches: in an epoch.
        predict: predictions instead of training steps.
        device: "cpu" or "cuda".
    """

    backbone: str
    particles: int = 5
    batch_size: int = 8
    rank: int = 4
    targets: tuple[str, ...] | None = None
    image_size: int = 224
    chunk_size: int | None = None
    epochs: int = 1
    batches: int = 1
    predict: bool = False
    device: str = "cpu"

    @property
    def steps(self) -> int:
        """In one round of a measurement."""
        return self.epochs * self.batches


class Batches:
    """Random pixels, and class 0 for each."""

    def __init__(self, setting: Setting) -> None:
        count = setting.batch_size * setting.batches
        shape = (count, 3, setting.image_size, setting.image_size)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(shape, generator=generator).to(setting.device).contiguous(memory_format=torch.channels_last)
        self.targets = torch.zeros(count, dtype=torch.int64)
        self.indices = torch.arange(count).split(setting.batch_size)

    def __len__(self) -> int:
        """N."""
        return len(self.x)

    def inputs(self, indices: Tensor, device: torch.device) -> Tensor:
        """Pixels (b, 3, S, S)."""
        return self.x[indices.to(self.x.device)]


Round = Callable[[], None]
"""Everything that one measurement times: `Setting.steps` steps."""


def _backbone(setting: Setting) -> nn.Module:
    scheme, reference = parse(setting.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = scheme.build(reference, image_size=setting.image_size, load=False, device="cpu")
    if not built.mean:
        raise UserError(f"{setting.backbone}: `bella speed` measures backbones of images")
    return built.model.requires_grad_(False).eval().to(setting.device).to(memory_format=torch.channels_last)


def _targets(setting: Setting, model: nn.Module) -> Sequence[str]:
    from benchmarks.backbones import default_targets

    return setting.targets or default_targets(model)


def _trained(particles: Particles, rule: Inference, setting: Setting) -> Round:
    """Rounds of training steps, or of predictions."""
    batches, device = Batches(setting), torch.device(setting.device)
    recipe = Recipe(batch_size=setting.batch_size, learning_rate=1e-4)
    if setting.predict:

        @torch.inference_mode()
        def predict() -> None:
            for indices in batches.indices:
                with autocast(device):
                    particles(batches.inputs(indices, device))

        return predict
    particles.zero_gradients()
    optimizer = optimizer_for(particles, recipe)

    def train() -> None:
        features = FeatureCache(particles, batches, device) if setting.epochs > 1 else None
        for _ in range(setting.epochs):
            for indices in batches.indices:
                train_step(particles, rule, batches, indices, recipe, optimizer, device, features)

    return train


def _low_rank(setting: Setting) -> LowRankParticles:
    model = _backbone(setting)
    targets = _targets(setting, model)
    return LowRankParticles(model, setting.particles, targets=targets, rank=setting.rank, chunk_size=setting.chunk_size)


def _bella(setting: Setting) -> Round:
    return _trained(_low_rank(setting), SVGD(), setting)


def independent(setting: Setting) -> Round:
    """Rounds of low-rank particles that do not repel each other."""
    return _trained(_low_rank(setting), Independent(), setting)


def numbers_of_a_particle(setting: Setting) -> int:
    """d: what one low-rank particle trains."""
    return _low_rank(dataclasses.replace(setting, particles=1)).trainable_parameters


def _one(setting: Setting) -> Round:
    return _bella(dataclasses.replace(setting, particles=1, batch_size=setting.particles * setting.batch_size, chunk_size=None))


def _full_rank(setting: Setting) -> Round:
    return _trained(FullRankParticles(_backbone(setting), setting.particles), SVGD(), setting)


def _one_by_one(models: Callable[[int], nn.Module], parameters: list[nn.Parameter], setting: Setting) -> Round:
    """Rounds of one particle after the other, as a plain training loop does them."""
    batches, device = Batches(setting), torch.device(setting.device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def train() -> None:
        for _ in range(setting.epochs):
            for indices in batches.indices:
                x, y = batches.inputs(indices, device), batches.targets[indices].to(device)
                optimizer.zero_grad()
                for i in range(setting.particles):
                    with autocast(device):
                        logits = models(i)(x)
                    F.cross_entropy(logits.float(), y).backward()
                optimizer.step()

    @torch.inference_mode()
    def predict() -> None:
        for indices in batches.indices:
            for i in range(setting.particles):
                with autocast(device):
                    models(i)(batches.inputs(indices, device))

    return predict if setting.predict else train


def _peft_model(setting: Setting, adapters: int) -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("`bella speed` compares with PEFT: pip install peft") from error
    model = _backbone(setting)
    names = [adapter.name for adapter in plan_adapters(model, _targets(setting, model), setting.rank)]
    config = peft.LoraConfig(r=setting.rank, lora_alpha=setting.rank, target_modules=names)
    made = peft.get_peft_model(model, config, adapter_name="0")
    for i in range(1, adapters):
        made.add_adapter(str(i), config)
    return made


def _peft(setting: Setting) -> Round:
    model = _peft_model(setting, setting.particles)
    trained = [p for name, p in model.named_parameters() if "lora_" in name]

    def activated(i: int) -> nn.Module:
        model.set_adapter(str(i))
        return model

    return _one_by_one(activated, trained, setting)


def _copies(setting: Setting) -> Round:
    model = _peft_model(setting, 1)
    models = [model, *(copy.deepcopy(model) for _ in range(1, setting.particles))]
    return _one_by_one(models.__getitem__, [p for m in models for p in m.parameters() if p.requires_grad], setting)


def _limit(setting: Setting) -> Round:
    model, device = _backbone(setting), torch.device(setting.device)
    shape = (setting.particles * setting.batch_size, 3, setting.image_size, setting.image_size)
    x = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)

    def both() -> None:
        for _ in range(setting.steps):
            with autocast(device):
                output = model(x.detach().requires_grad_(not setting.predict))
            if not setting.predict:
                output.backward(torch.ones_like(output))

    def forward() -> None:
        with torch.inference_mode():
            both()

    return forward if setting.predict else both


CONTENDERS: dict[str, Callable[[Setting], Round]] = {
    "bella": _bella,
    "peft": _peft,
    "copies": _copies,
    "full_rank": _full_rank,
    "one": _one,
    "limit": _limit,
}


def command_line(setting: Setting, contenders: Sequence[str], repeats: int) -> str:
    """The `bella speed` command of a measurement."""
    words = ["bella", "speed", setting.backbone]
    for option in dataclasses.fields(setting):
        value = getattr(setting, option.name)
        if option.name == "backbone" or value == option.default:
            continue
        words.append(f"--{option.name.replace('_', '-')}")
        if value is not True:
            words.append(",".join(value) if isinstance(value, tuple) else str(value))
    return shlex.join([*words, "--contenders", ",".join(contenders), "--repeats", str(repeats)])


def measure(
    setting: Setting, contenders: Sequence[str], repeats: int, progress: Callable[..., Any] = lambda items: items
) -> dict[str, Any]:
    """Seconds a step and peak memory of each contender.

    Args:
        setting: what is measured.
        contenders: names of `CONTENDERS`; one that does not fit into memory is left out (None).
        repeats: rounds after the first, of which the median is taken.
        progress: goes through the rounds, showing how far it is.

    Returns:
        {"command", "setting", "seconds", "peak_memory_bytes" (each by contender), "ratios" (ours to theirs),
        "svgd_share", "environment"}
    """
    environment.reuse_freed_memory()
    device = torch.device(setting.device)
    # Memory first: its processes are forked from one that has not computed yet.
    fits = {name: _needed_bytes(name, setting) <= 0.7 * available_bytes(device) for name in contenders}
    alone = [name for name in contenders if fits[name]]
    peaks = {name: call_isolated(peak_of, name, setting) if device.type == "cpu" else peak_of(name, setting) for name in alone}
    rounds = {name: CONTENDERS[name](setting) for name in alone}
    taken: dict[str, list[float]] = {name: [] for name in alone}
    for _ in progress(range(repeats + 1)):
        for name, once in rounds.items():
            taken[name].append(seconds_of(once, device))
    seconds = {name: statistics.median(times[1:]) / setting.steps for name, times in taken.items()}
    ours = seconds.get("bella")
    return {
        "command": command_line(setting, contenders, repeats),
        "setting": dataclasses.asdict(setting),
        "seconds": {name: seconds.get(name) for name in contenders},
        "peak_memory_bytes": {name: peaks.get(name) for name in contenders},
        "ratios": {name: ours / other for name, other in seconds.items() if ours is not None and name != "bella"},
        "svgd_share": None if setting.predict or ours is None else svgd_seconds(setting, repeats) / ours,
        "environment": environment.describe(device),
    }


def peak_of(name: str, setting: Setting) -> int:
    """The most memory that two rounds of a contender need, itself included; on a CPU, in a process that does nothing else."""
    device = torch.device(setting.device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
    with peak_memory(device) as peak:
        once = CONTENDERS[name](setting)
        for _ in range(2):
            seconds_of(once, device)
    assert peak.bytes is not None
    return peak.bytes - before


def svgd_seconds(setting: Setting, repeats: int) -> float:
    """Seconds that the SVGD transform of the gradients takes."""
    device = torch.device(setting.device)
    particles = _low_rank(setting)
    particles.zero_gradients()
    rule = SVGD()
    taken = [seconds_of(lambda: rule.transform(particles, 1000), device) for _ in range(repeats + 1)]
    return statistics.median(taken[1:])


def seconds_of(work: Round, device: torch.device) -> float:
    """Seconds that a round takes, to its end on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    with fast_linear(device):  # for all contenders alike
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _needed_bytes(name: str, setting: Setting) -> int:
    """What a contender holds beside activations."""
    scheme, reference = parse(setting.backbone)
    _, base = count_parameters(scheme.build(reference, image_size=setting.image_size, load=False, device="meta").model)
    return {"copies": setting.particles, "full_rank": 4 * setting.particles + 1}.get(name, 1) * base


def speed_lines(found: Mapping[str, Any]) -> list[str]:
    """A Markdown table of a measurement, with what it was of."""
    setting, device = found["setting"], found["environment"]
    lines = ["| | seconds a step | ours / theirs | peak memory |", "|---|--:|--:|--:|"]
    for name, seconds in found["seconds"].items():
        if seconds is None:
            lines.append(f"| {name} | does not fit | | |")
            continue
        ratio = f"{found['ratios'][name]:.2f}" if name in found["ratios"] else ""
        lines.append(f"| {name} | {seconds:.4g} | {ratio} | {format_units(found['peak_memory_bytes'][name], BYTE_UNITS)} |")
    told = {key: value for key, value in setting.items() if key not in ("backbone", "device") and value not in (None, False)}
    share = "" if found["svgd_share"] is None else f" SVGD: {found['svgd_share']:.1%} of our step."
    where = device["device"] if device["device"] != "cpu" else f"{device['processor']}, {device['threads']} threads"
    options = ", ".join(f"{key} {value}" for key, value in told.items())
    return [*lines, "", f"{setting['backbone']}: {options}. {where}, {device['precision']}.{share}"]
