"""`bella costs SUITE`: what its runs cost, before they are run and without their data and weights.

Parameters and stored bytes are exact. Memory and time of a step are estimated from shapes, or measured where asked and possible.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bella.errors import UserError
from benchmarks import environment, estimate
from benchmarks.isolated import call_isolated
from benchmarks.plan import Run, make_plan
from benchmarks.records import write_text
from benchmarks.suite import Suite, with_overrides, write_suite
from benchmarks.tables import BYTE_UNITS, format_units

FILE = "costs.json"
TABLE = "costs.md"

CAPTION = (
    "Parameters and stored bytes are exact. Memory, estimated: theta_0, particles with gradients and AdamW's moments, and what a "
    "pass saves for its backward; what libraries and a product's work space take is not in it. Measured: the peak of four steps "
    "with random weights and pixels; on a CPU the process's, less what it held before theta_0. Step, estimated: its operations at "
    "the rate of one large matrix product, which is a lower bound"
)


def suite_costs(
    suite: Suite,
    overrides: Mapping[str, Any],
    *,
    device: torch.device,
    measure: bool,
    longest: float,
    folder: Path | None = None,
    progress: Callable[[Sequence[Run]], Iterable[Run]] = lambda runs: runs,
) -> dict[str, Any]:
    """Costs of every run of a suite, of one seed: seeds cost the same.

    Args:
        suite: its data and weights may be missing.
        overrides: settings that win over the suite's.
        device: where to measure, or what the estimate is for.
        measure: take a few steps with random weights where they fit into memory.
        longest: steps that are estimated to take more seconds than that are not measured.
        folder: rows are written there as they come, and those that an interrupted call left there are not worked out again.
        progress: goes through the runs, showing how far it is.

    Returns:
        {"suite", "device", "product_rate", "rows": a mapping a run; its "memory" and "step" say "measured" or "estimated"}
    """
    on_gpu = device.type == "cuda"
    runs = make_plan(suite.model_copy(update={"seeds": suite.seeds[:1]}), overrides, complete=False)
    if folder is not None:
        write_suite(with_overrides(suite, overrides), folder)
    found: dict[str, Any] = {"suite": suite.name, "device": environment.describe(device), "longest": longest if measure else None}
    before = _written(folder) if folder is not None else {}
    if any(before.get(key) != value for key, value in found.items()):
        before = {}  # of another machine, or asked otherwise
    found["product_rate"] = before.get("product_rate") or call_isolated(estimate.product_rate, device.type, on_gpu)
    known = {_key(row): row for row in before.get("rows", [])}
    rows: list[dict[str, Any]] = []
    found["rows"] = rows
    for run in progress(runs):
        key = {"problem": run.problem, "method": run.label, "hash": run.hash, "chunk_size": run.chunk_size}
        rows.append(known.get(_key(key)) or {**key, **_row(run, device, measure, longest, found["product_rate"])})
        if folder is not None:
            write_costs(found, folder)
    return found


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("problem", "method", "hash", "chunk_size"))


def _written(folder: Path) -> dict[str, Any]:
    """What an earlier call left in a folder; nothing where there is none, or it cannot be read."""
    try:
        content = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _row(run: Run, device: torch.device, measure: bool, longest: float, rate: float) -> dict[str, Any]:
    found = estimate.estimate(run, half_precision=device.type == "cuda")
    seconds = found.step_operations / rate
    row: dict[str, Any] = {
        "backbone": run.backbone,
        "particles": run.particles,
        "rank": run.particle_options.get("rank"),
        "batch_size": run.recipe.batch_size,
        **dataclasses.asdict(found.counts),
        "memory_bytes": found.memory_bytes,
        "memory": "estimated",
        "step_operations": found.step_operations,
        "step_seconds": seconds,
        "step": "estimated",
    }
    if measure and seconds <= longest and found.memory_bytes <= 0.8 * available_bytes(device):
        try:
            seen = call_isolated(estimate.measure, run, device.type)
        except UserError:
            return row  # the process died for want of memory: the estimate stands
        row |= {"memory_bytes": seen.memory_bytes, "step_seconds": seen.step_seconds, "memory": "measured", "step": "measured"}
    return row


def available_bytes(device: torch.device) -> int:
    """Memory that a run can have on a device; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def suite_markdown(found: Mapping[str, Any]) -> str:
    """A table for each backbone, which says of every figure whether it is measured."""
    parts = [f"# Costs: {found['suite']}"]
    for backbone in dict.fromkeys(row["backbone"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["backbone"] == backbone]
        first = rows[0]
        size = format_units(first["base_bytes"], BYTE_UNITS)
        parts.append(f"## {backbone}\n\ntheta_0: {first['total_parameters']:,} parameters, {size}; batch {first['batch_size']}")
        lines = [
            "| Method | n | r | Trained / particle | of theta_0 | Stored | Memory | | Step | |",
            "|---|--:|--:|--:|--:|--:|--:|---|--:|---|",
        ]
        for row in rows:
            stored, memory = (format_units(row[name], BYTE_UNITS) for name in ("stored_bytes", "memory_bytes"))
            lines.append(
                f"| {row['method']} | {row['particles']} | {row['rank'] or '–'} | {row['trainable_parameters_per_particle']:,} "
                f"| {row['ratio']:.2%} | {stored} | {memory} | {row['memory']} | {row['step_seconds']:.3g} s | {row['step']} |"
            )
        parts.append("\n".join(lines))
    device = found["device"]
    where = device["device"] if device["device"] != "cpu" else f"{device['processor']}, {device['threads']} threads"
    rate = f"{found['product_rate'] / 1e12:.3g} TFLOP/s, measured"
    parts.append(f"{CAPTION} ({rate}). Device: {where}, {device['precision']}.")
    return "\n\n".join(parts) + "\n"


def write_costs(found: Mapping[str, Any], folder: Path) -> None:
    """Write costs.json and costs.md into a folder, from which `bella publish` takes them."""
    write_text(folder / FILE, json.dumps(found, indent=1) + "\n")
    write_text(folder / TABLE, suite_markdown(found))
