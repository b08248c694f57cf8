"""`bella export`: the particles of a finished run, for other programs; and such adapters as particles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from bella.checkpoint import load_particles, load_tensors, save_tensors
from bella.errors import UserError
from bella.lowrank import LowRankParticles, change_scale
from bella.particles import Particles, Shard
from bella.peft_adapters import load_peft_adapters, write_peft_adapter
from benchmarks.backbones import Backbone, architecture, build_classifier, parse
from benchmarks.posterior import PARTICLES, make_particles
from benchmarks.records import FILE, Record, read_record
from benchmarks.registries import METHODS

HEAD = "head"


def export_to_peft(run: Path, out: Path) -> list[Path]:
    """Write every particle of a run as a PEFT adapter of the backbone as its own library makes it.

    Args:
        run: the run's folder, with record.json and particles.safetensors.
        out: gets a folder a particle.

    Returns:
        the folders.

    Raises:
        UserError: there is no such run, its particles are not low-rank, or PEFT cannot hold them.
    """
    record = read_record(run / FILE)
    stacked = load_tensors(run / PARTICLES)
    names = [name.removesuffix(".A") for name in stacked if name.endswith(".A")]
    if not names:
        raise UserError(f"{run}: {record.run.method} has no low-rank factors, and PEFT holds nothing else: export a bella- method")
    if METHODS.resolve(record.run.method).shares_rows:
        raise UserError(
            f"{run}: the particles of {record.run.method} share their factors, and PEFT holds no draws: export another method"
        )
    backbone = architecture(record.run.backbone)
    prefix = plain_prefix(backbone)
    plain = backbone.plain_model()
    folders = []
    options = record.run.config.get("parameterisation", {})
    scale = change_scale(options.get("alpha"), options.get("rank", 1))
    for index in range(next(iter(stacked.values())).shape[0]):
        factors = {n.removeprefix(prefix): (stacked[f"{n}.A"][index], scale * stacked[f"{n}.B"][index]) for n in names}
        head = {name: tensor[index] for name, tensor in stacked.items() if name.startswith(f"{HEAD}.")}
        if head:
            if backbone.classifier is None:
                raise UserError(
                    f"{run}: {record.run.backbone} has no classifier of its own that could hold the trained head, and PEFT keeps "
                    "heads nowhere else: train with head=zero-shot, or export a timm backbone"
                )
            head = {name.replace(HEAD, backbone.classifier, 1): tensor for name, tensor in head.items()}
            plain = backbone.plain_model(classes=head[f"{backbone.classifier}.bias"].shape[0])
        folder = out / f"particle{index}"
        write_peft_adapter(folder, plain, factors, head, record.run.backbone.partition("?")[0])
        folders.append(folder)
    return folders


def export_to_checkpoint(run: Path, out: Path) -> list[Path]:
    """Write every particle of a run as a whole network, theta_0 included, under the names of the backbone's own library.

    Each file is a theta_0 for other runs, `NAME?checkpoint=FILE`. A trained head goes along where the library has a name for it.

    Args:
        run: the run's folder, with record.json and particles.safetensors.
        out: gets a file a particle.

    Returns:
        the files.

    Raises:
        UserError: there is no such run, its theta_0 is another one by now, or it is no single backbone.
    """
    record = read_record(run / FILE)
    scheme, reference = parse(record.run.backbone)
    if reference.scheme == "pair":
        raise UserError(f"{run}: {record.run.backbone} is two networks, and a checkpoint holds one")
    if (now := scheme.weights(reference).checksum) != record.run.config["weights"]:
        raise UserError(f"{run}: was trained on weights {record.run.config['weights']}; {record.run.backbone} now has {now}")
    particles = _stored_particles(record, run / PARTICLES)
    backbone = architecture(record.run.backbone)
    files = []
    for index in range(particles.num_particles):
        merged = particles.merge(index)
        tensors = dict(merged.get_submodule(plain_prefix(backbone).removesuffix(".")).state_dict())
        if isinstance(merged.head, nn.Linear) and backbone.classifier is not None:
            tensors |= {f"{backbone.classifier}.{name}": tensor for name, tensor in merged.head.state_dict().items()}
        files.append(out / f"particle{index}.safetensors")
        save_tensors(tensors, files[-1])
    return files


def _stored_particles(record: Record, file: Path) -> Particles:
    """A run's particles on its theta_0, without its data."""
    config = record.run.config
    trained = config["head"] == "trained"
    classes = load_tensors(file)[f"{HEAD}.bias"].shape[-1] if trained else 1
    model = build_classifier(
        record.run.backbone,
        class_names=[str(index) for index in range(classes)],
        image_size=config["data"].get("image_size"),
        head="trained",
        templates=[],
    )
    if not trained:
        model.head = nn.Identity()  # a frozen head is no part of any particle
    particles = make_particles(
        model,
        record.run.method,
        record.run.seed,
        Shard.whole(config["particles"]),
        head=HEAD if trained else None,
        chunk_size=1,
        options=config["parameterisation"],
    )
    load_particles(particles, file)
    return particles


FORMATS: Mapping[str, Callable[[Path, Path], list[Path]]] = {"peft": export_to_peft, "checkpoint": export_to_checkpoint}
"""How particles are written, by the name that `--to` takes."""


def load_from_peft(particles: LowRankParticles, backbone: Backbone, folders: Sequence[Path]) -> None:
    """Set particles over a run's model to PEFT adapters of the backbone as its own library makes it.

    Raises:
        UserError: an adapter does not fit.
    """
    head = (HEAD, backbone.classifier) if particles.head is not None and backbone.classifier is not None else None
    load_peft_adapters(particles, folders, prefix=plain_prefix(backbone), head=head)


def plain_prefix(backbone: Backbone) -> str:
    """Where the library's own model stands in the model that particles adapt."""
    return f"backbone.{backbone.plain}." if backbone.plain else "backbone."
