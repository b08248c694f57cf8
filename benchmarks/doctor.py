"""`bella doctor`: what this machine has (devices, data, weights), and how to get what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bella.errors import UserError
from benchmarks.registries import ALL, BACKBONES, PROBLEMS


def examine() -> list[dict[str, Any]]:
    """One finding a line: {"what", "state" ("ok" or "missing"), "detail"}."""
    import torch

    from benchmarks import environment
    from benchmarks.backbones import parse

    findings: list[dict[str, Any]] = []

    def note(what: str, detail: str, fine: bool = True) -> None:
        findings.append({"what": what, "state": "ok" if fine else "missing", "detail": detail})

    note("python", sys.version.split()[0])
    note("packages", ", ".join(f"{name} {version}" for name, version in environment.package_versions().items()))
    note("processor", f"{environment.processor_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            note(f"gpu {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    else:
        note("gpu", "none that torch sees: everything runs on the CPU; for a GPU install a CUDA build of torch", fine=False)
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    note(
        "hub cache",
        f"{cache}: {'weights fetched before are here' if cache.is_dir() else 'empty, weights are fetched when first used'}",
    )

    try:
        scheme, reference = parse("packaged:efficientnet_lite0")
        note("weights packaged:efficientnet_lite0", scheme.weights(reference).description)
    except UserError as error:
        note("weights packaged:efficientnet_lite0", str(error), fine=False)
    for name in PROBLEMS.names():
        try:
            problem = PROBLEMS.resolve(name)()
            missing = problem.missing(problem.options())
        except (UserError, ValidationError) as error:
            missing = str(error).splitlines()[0]
        note(f"data {name}", missing or "at hand", fine=missing is None)
    for kind, registry in ALL.items():
        for entry in registry.entries().values():
            if entry.origin == "bella-bench":
                continue
            try:
                registry.resolve(entry.name)
                note(f"plugin {kind} {entry.name}", f"from {entry.origin}")
            except UserError as error:
                note(f"plugin {kind} {entry.name}", str(error), fine=False)
    note("backbones", ", ".join(entry.summary for entry in BACKBONES.entries().values()))
    return findings
