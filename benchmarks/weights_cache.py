"""Which weights are here already, told without touching the network."""

from __future__ import annotations

from pathlib import Path

from benchmarks.backbones import Reference, parse


def missing_weights(backbone: str) -> str | None:
    """None where a backbone's weights are at hand (or it needs none); else what would be fetched, and how to do without.

    Raises:
        UserError: the backbone is unknown.
    """
    if backbone.startswith("image="):
        image, _, question = backbone.removeprefix("image=").partition("+question=")
        lacking = [found for part in (image, question) if (found := missing_weights(part)) is not None]
        return "; ".join(lacking) or None
    _, reference = parse(backbone)
    if reference.random or reference.checkpoint is not None or reference.scheme not in _SOURCES:
        return None
    repository, files = _SOURCES[reference.scheme](reference)
    if repository is None or any(_cached(repository, file) for file in files):
        return None
    return (
        f"{repository} is fetched from the hub when first used; without a connection: {reference.name}?checkpoint=FILE.safetensors"
    )


def _cached(repository: str, file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file), str)


def _timm(reference: Reference) -> tuple[str | None, list[str]]:
    import timm

    config = timm.get_pretrained_cfg(reference.model)
    return getattr(config, "hf_hub_id", None), ["model.safetensors", "pytorch_model.bin"]


def _open_clip(reference: Reference) -> tuple[str | None, list[str]]:
    import open_clip

    config = open_clip.get_pretrained_cfg(reference.model, reference.tag or "") or {}
    repository = str(config.get("hf_hub") or "").rstrip("/")
    if repository:
        return repository, ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    address = str(config.get("url") or "")
    if not address:
        return None, []
    here = Path("~/.cache/clip").expanduser() / address.rpartition("/")[2]  # where open_clip puts what has no hub
    return (None, []) if here.exists() else (address, [])


def _transformers(reference: Reference) -> tuple[str | None, list[str]]:
    name = f"{reference.model}/{reference.tag}" if reference.tag else reference.model
    return (None, []) if Path(name).is_dir() else (name, ["config.json"])


_SOURCES = {"timm": _timm, "open_clip": _open_clip, "transformers": _transformers}
