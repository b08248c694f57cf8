"""What the command prints: tables for reading on a terminal, plain text elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable


def print_backbone_costs(
    backbone: str, particles: int, ranks: list[int], targets: list[str] | None, classes: int | None, as_json: bool
) -> None:
    """Counts of low-rank particles at each rank, and of full-rank ones."""
    from benchmarks.costs import backbone_costs
    from benchmarks.tables import BYTE_UNITS, format_units

    found = backbone_costs(backbone, particles=particles, ranks=ranks, targets=targets, classes=classes)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    full = found["full_rank"]
    head = f", head of {classes} classes trained" if classes else ""
    console = Console(highlight=False)
    print(
        f"{backbone}: theta_0 {full['total_parameters']:,} parameters; targets {', '.join(found['targets'])}{head}; n = {particles}"
    )
    table = RichTable("", "trained / particle", "of theta_0", "trained, all", "stored", "theta_0")
    rows = [(f"low-rank, r = {row['rank']}", row) for row in found["low_rank"]] + [("full-rank", full)]
    for name, row in rows:
        counts = [f"{row['trainable_parameters_per_particle']:,}", f"{row['ratio']:.2%}", f"{row['trainable_parameters']:,}"]
        table.add_row(name, *counts, format_units(row["stored_bytes"], BYTE_UNITS), format_units(row["base_bytes"], BYTE_UNITS))
    console.print(table)


def say_failures(failed: list[Any], count: int) -> None:
    """Which runs have failed and why, on stderr."""
    console = Console(stderr=True, highlight=False)
    console.print(f"{len(failed)} of {count} runs failed; the same command tries them again:", soft_wrap=True)
    for outcome in failed:
        console.print(f"  {outcome.run.title}: {outcome.failure}", soft_wrap=True, markup=False)


def show_plan(runs: list[Any], folder: Path, on_gpu: bool) -> None:
    """Every run, what it would do and need; then what is missing here, and how to get it."""
    from bella.resume import CHECKPOINT
    from benchmarks.estimate import estimate
    from benchmarks.progress import track
    from benchmarks.runner import missing_tasks, stored_record
    from benchmarks.tables import BYTE_UNITS, format_units
    from benchmarks.weights_cache import missing_weights

    table = RichTable("run", "particles", "data", "theta_0", "memory", "to do")
    for column in table.columns:
        column.overflow = "fold"
    memory: dict[Any, int] = {}
    lacking: dict[str, None] = {}
    for planned in track(runs):
        record = None if planned.missing else stored_record(planned, folder)
        training = "go on training" if (folder / planned.folder / CHECKPOINT).exists() else "train"
        to_do = ([] if record else [training]) + [task.name for task in missing_tasks(planned, record)]
        same = (planned.problem, planned.label, planned.backbone, planned.data_options)
        if same not in memory:
            memory[same] = estimate(planned, half_precision=on_gpu).memory_bytes
        weights = missing_weights(planned.backbone)
        lacking |= dict.fromkeys(found for found in (planned.missing, weights) if found)
        table.add_row(
            planned.title,
            str(planned.particles),
            "missing" if planned.missing else "here",
            f"{planned.backbone} ({planned.weights.description}{', to be fetched' if weights else ''})",
            format_units(memory[same], BYTE_UNITS),
            ", ".join(to_do) or "nothing",
        )
    console = Console(highlight=False)
    console.print(table)
    print(
        f"{len(runs)} runs; memory is estimated from shapes ({'bf16 products' if on_gpu else 'float32'}, `bella costs` says how)."
    )
    for line in lacking:
        print(f"missing: {line}")


def print_tables(made: list[Any]) -> None:
    """Tables for reading on a terminal; as Markdown where the output goes elsewhere."""
    from benchmarks.tables import format_value, to_markdown

    console = Console(highlight=False)
    if not console.is_terminal:
        print(to_markdown(made), end="")
        return
    for table in made:
        shown = RichTable(title=table.title, caption=table.caption, title_justify="left", caption_justify="left")
        shown.add_column("Method", no_wrap=True)
        for column in table.columns:
            shown.add_column(column.title, justify="right")
        best = [table.best(index) for index in range(len(table.columns))]
        for row, (label, values) in enumerate(table.rows):
            texts = [format_value(value, column) for value, column in zip(values, table.columns, strict=True)]
            shown.add_row(label, *(f"[bold]{text}[/]" if row in best[i] else text for i, text in enumerate(texts)))
        console.print(shown, "")


def print_claims(found: list[Any]) -> None:
    """The paper's claims: a table on a terminal, Markdown elsewhere."""
    console = Console(highlight=False)
    if not console.is_terminal:
        print("| # | Claim | Tested by | Figure | Verdict |\n|--:|---|---|---|---|")
        for finding in found:
            print(f"| {finding.number} | {finding.claim} | {finding.suite} | {finding.figure} | {finding.verdict} |")
        return
    table = RichTable("#", "claim", "tested by", "figure", "verdict")
    for finding in found:
        table.add_row(str(finding.number), finding.claim, finding.suite, finding.figure, finding.verdict)
    console.print(table)
