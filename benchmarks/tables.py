"""Tables from records: methods as rows, mean +- std over seeds, the best in bold; Markdown, LaTeX and CSV.

Reads records only. Nothing of the training code is imported.
"""

from __future__ import annotations

import csv
import io
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bella.errors import UserError, suggest
from benchmarks.across import (
    DIFFERENCES,
    DIFFERENCES_CAPTION,
    EQUIVALENTS,
    EQUIVALENTS_CAPTION,
    compare_rows,
    compared_pairs,
    ensemble_curves,
    equivalents,
)
from benchmarks.records import Record
from benchmarks.registries import METHODS, TASKS
from benchmarks.stored import StoredRun, find_runs
from benchmarks.task import Column, Value

SUMMARY_COSTS: tuple[Column, ...] = (
    Column("trainable_parameters_per_particle", "Trained / particle", None, unit="count"),
    Column("stored_bytes", "Stored", None, unit="bytes"),
)
COSTS = (
    Column("total_parameters", "theta_0", None, unit="count"),
    Column("base_bytes", "theta_0 size", None, unit="bytes"),
    Column("trainable_parameters_per_particle", "Trained / particle", None, unit="count"),
    Column("ratio", "of theta_0 (%)", None, 100, 2),
    Column("trainable_parameters", "Trained, all", None, unit="count"),
    Column("stored_bytes", "Stored", None, unit="bytes"),
    Column("peak_memory_bytes", "Peak memory", None, unit="bytes"),
    Column("train_seconds", "Training", None, unit="seconds"),
    Column("train_examples_per_second", "Examples / s", None, 1, 0),
    Column("eval_seconds", "Evaluation", None, unit="seconds"),
)
BYTE_UNITS = (" B", " kB", " MB", " GB", " TB")

COSTS_CAPTION = (
    "theta_0 is held once and not counted as stored; sizes in powers of 1000; peak memory is that of the whole process on a CPU "
    "and of the allocator on a GPU; examples a second count each training image once, however many particles see it"
)


@dataclass
class Table:
    """One table: values by row and column, and which are best."""

    problem: str
    task: str
    name: str
    columns: tuple[Column, ...]
    rows: list[tuple[str, list[Value]]]
    caption: str

    @property
    def title(self) -> str:
        """The problem's name and the table's own."""
        return f"{self.problem}: {self.name}"

    def best(self, index: int) -> set[int]:
        """Rows that show the best mean of a column; all that print the same. None where there is nothing to compare.

        Of differences: those whose interval does not hold 0.
        """
        column = self.columns[index]
        intervals = {row: values[index].interval for row, (_, values) in enumerate(self.rows)}
        if any(intervals.values()):
            return {row for row, found in intervals.items() if found is not None and not found[0] <= 0 <= found[1]}
        means = {row: values[index].mean for row, (_, values) in enumerate(self.rows)}
        known = {row: mean for row, mean in means.items() if mean is not None}
        if column.better is None or len(known) < 2:
            return set()
        target = max(known.values()) if column.better == "higher" else min(known.values())
        return {row for row, mean in known.items() if format_number(mean, column) == format_number(target, column)}


def group_runs(folder: Path) -> dict[str, dict[str, list[StoredRun]]]:
    """The runs of a results folder: problem -> row -> runs of its seeds; rows in the suite's order.

    Raises:
        UserError: the folder has no records, or a damaged one.
    """
    runs = find_runs(folder)
    names = label_rows([run.record for run in runs])
    order = {name: place for place, name in enumerate(row_order(folder, names))}
    grouped: dict[str, dict[str, list[StoredRun]]] = {}
    for name, run in sorted(zip(names, runs, strict=True), key=lambda pair: order[pair[0]]):
        grouped.setdefault(run.record.run.problem, {}).setdefault(name, []).append(run)
    return dict(sorted(grouped.items()))


def make_tables(folder: Path) -> list[Table]:
    """All tables of a results folder: for every problem those of each task, then its costs.

    Raises:
        UserError: the folder has no records, or a damaged one.
    """
    tables = []
    pairs, runs_by_problem = compared_pairs(folder), group_runs(folder)
    curves = ensemble_curves(folder, runs_by_problem)
    for problem, grouped in runs_by_problem.items():
        rows = {label: [run.record for run in runs] for label, runs in grouped.items()}
        records = [record for members in rows.values() for record in members]
        source = describe_source(records)
        for name, task in answered_tasks(records).items():
            answered = {label: own for label, members in rows.items() if (own := [r for r in members if name in r.tasks])}
            known = set().union(*(record.tasks[name] for members in answered.values() for record in members))
            costs = SUMMARY_COSTS
            for title, listed in task.tables.items():
                columns = tuple(column for column in listed if column.metric in known)
                if not columns:
                    continue
                body = [
                    (label, [summarise(members, name, c) for c in columns] + [summarise(members, "costs", c) for c in costs])
                    for label, members in answered.items()
                ]
                caption = f"{source} {task.caption}."
                if title == next(iter(task.tables)) and name == "classification" and problem in curves:
                    extra = equivalents(answered, curves[problem])
                    columns = (*columns, *EQUIVALENTS)
                    body = [(label, [*v[: len(v) - len(costs)], *extra[label], *v[len(v) - len(costs) :]]) for label, v in body]
                    caption += f" {EQUIVALENTS_CAPTION}."
                tables.append(Table(problem, name, title, (*columns, *costs), body, caption))
                costs = ()
            if name == "classification" and (differences := compare_rows(grouped, pairs)):
                tables.append(Table(problem, name, "Differences", DIFFERENCES, differences, f"{source} {DIFFERENCES_CAPTION}."))
        body = [(label, [summarise(members, "costs", c) for c in COSTS]) for label, members in rows.items()]
        tables.append(Table(problem, "costs", "Costs", COSTS, body, f"{source} {COSTS_CAPTION}."))
    return tables


def answered_tasks(records: Sequence[Record]) -> dict[str, Any]:
    """The tasks that some record answers, by name, in the registry's order; one that cannot be imported is named and left out."""
    found = {}
    for name in TASKS.names():
        if any(name in record.tasks for record in records):
            try:
                found[name] = TASKS.resolve(name)
            except UserError as error:
                warnings.warn(f"{error}: its results are left out", stacklevel=2)
    return found


def summarise(records: Sequence[Record], task: str, column: Column) -> Value:
    """Mean and standard deviation of one metric over seeds."""
    values = [(r.costs if task == "costs" else r.tasks[task]).get(column.metric) for r in records]
    known = [float(v) for v in values if isinstance(v, int | float)]
    return Value(
        mean=statistics.fmean(known) if known else None,
        std=statistics.stdev(known) if len(known) > 1 else None,
        count=len(known),
        seeds=len(records),
    )


def label_rows(records: Sequence[Record]) -> list[str]:
    """The row of every record: its label, with whatever setting tells it from others of that label."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault((record.run.problem, record.run.label), []).append(index)
    names = [""] * len(records)
    for (_, label), members in groups.items():
        flat = [{k: v for k, v in _flatten(records[m].run.config).items() if k != "seed"} for m in members]
        keys = dict.fromkeys(key for config in flat for key in config)
        differing = [key for key in keys if len({repr(config.get(key)) for config in flat}) > 1]
        for member, config in zip(members, flat, strict=True):
            note = ", ".join(f"{key.rpartition('.')[2]}={config.get(key)}" for key in differing)
            names[member] = f"{label} ({note})" if note else label
    return names


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {name: value for key, part in config.items() for name, value in _flatten(part, f"{prefix}.{key}".lstrip(".")).items()}


def row_order(folder: Path, names: Sequence[str]) -> list[str]:
    """Rows as the suite lists its methods; then as the registry does; then by name."""
    listed: list[str] = []
    try:
        suite = yaml.safe_load((folder / "suite.yaml").read_text())
        listed = [entry.get("label") or entry["method"] for entry in suite["methods"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        pass  # records alone make tables too
    listed += METHODS.names()

    def place(name: str) -> tuple[int, str]:
        label = name.partition(" (")[0]
        return (listed.index(label) if label in listed else len(listed), name)

    return sorted(set(names), key=place)


def describe_source(records: Sequence[Record]) -> str:
    """Which data, weights, particles and seeds made the rows."""

    def several(values: Sequence[object]) -> str:
        return "; ".join(dict.fromkeys(str(value) for value in values))

    seeds = sorted({record.run.seed for record in records})
    spread = "mean ± standard deviation over seeds" if len(seeds) > 1 else "seed"
    return (
        f"Data: {several([r.run.data for r in records])}. theta_0: {several([r.run.backbone for r in records])}, "
        f"{several([r.run.weights for r in records])}. {_particle_counts(records)}; "
        f"{spread} {', '.join(map(str, seeds))}{_rows_with_fewer(records, seeds)}; "
        f"prediction averages {several([r.run.config['recipe']['average'] for r in records])}."
    )


def _particle_counts(records: Sequence[Record]) -> str:
    """The number that most rows have, and the rows that have another."""
    own = {record.run.label: record.run.config["particles"] for record in records}
    counts = [count for count in own.values() if count > 1]
    if not counts:
        return "one particle"
    most = max(sorted(set(counts)), key=counts.count)
    others = {count: [label for label in own if own[label] == count] for count in sorted(set(counts) - {most})}
    listed = "".join(f"; {count}: {', '.join(labels)}" for count, labels in others.items())
    return f"n = {most} particles (1 for single networks{listed})"


def _rows_with_fewer(records: Sequence[Record], seeds: Sequence[int]) -> str:
    """Which rows have not all of the seeds."""
    rows: dict[str, list[int]] = {}
    for record in records:
        rows.setdefault(record.run.label, []).append(record.run.seed)
    fewer: dict[str, list[str]] = {}
    for label, own in rows.items():
        if set(own) != set(seeds):
            fewer.setdefault(", ".join(map(str, sorted(set(own)))), []).append(label)
    listed = "; ".join(f"{own}: {', '.join(labels)}" for own, labels in fewer.items())
    return f" ({listed})" if fewer else ""


# ---- numbers -------------------------------------------------------------------------------------------------------


def format_number(value: float, column: Column) -> str:
    """A value as the column shows it."""
    value *= column.scale
    if column.unit == "count":
        return format_units(value, ("", " K", " M", " B"))
    if column.unit == "bytes":
        return format_units(value, BYTE_UNITS)
    if column.unit == "seconds":
        return f"{value:.1f} s" if value < 600 else f"{value / 60:.1f} min" if value < 36000 else f"{value / 3600:.1f} h"
    return f"{value:.{column.digits}f}"


def format_units(value: float, units: Sequence[str]) -> str:
    """A number with the unit, a power of 1000, that leaves one to three digits before the point."""
    index = 0
    while value >= 999.5 and index + 1 < len(units):
        value, index = value / 1000, index + 1
    digits = 0 if index == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{units[index]}"


def format_value(value: Value, column: Column, pm: str = "±") -> str:
    """mean ± std; a dash where undefined; the count of seeds that define it where not all do."""
    if value.mean is None:
        return "–"
    if value.interval is not None:
        low, high = (format_number(end, column) for end in value.interval)
        return f"{format_number(value.mean, column)} [{low}, {high}]"
    text = format_number(value.mean, column)
    if value.std is not None and not (value.std == 0 and column.unit in ("count", "bytes")):
        text += f" {pm} {format_number(value.std, column)}"
    return text if value.count == value.seeds else f"{text} ({value.count} of {value.seeds})"


# ---- forms ---------------------------------------------------------------------------------------------------------


def to_markdown(tables: Sequence[Table]) -> str:
    """GitHub tables, each under its title, its caption below."""
    return "\n\n".join(_one_markdown(table) for table in tables) + "\n"


def _one_markdown(table: Table) -> str:
    grid = _grid(table, lambda text: text, lambda text: f"**{text}**", "±")
    heading = ["Method", *(column.title for column in table.columns)]
    widths = [max(len(row[i]) for row in [heading, *grid]) for i in range(len(heading))]

    def line(cells: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
            + " |"
        )

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([f"### {table.title}", "", line(heading), rule, *(line(row) for row in grid), "", table.caption])


def to_latex(tables: Sequence[Table]) -> str:
    """`table` environments with booktabs rules."""
    return "\n\n".join(_one_latex(table) for table in tables) + "\n"


def _one_latex(table: Table) -> str:
    grid = _grid(table, _escape, lambda text: rf"\textbf{{{text}}}", r"$\pm$")
    heading = " & ".join(["Method", *(_escape(column.title) for column in table.columns)])
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(table.title)}. {_escape(table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        heading + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in grid),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
    }
)


def _escape(text: str) -> str:
    return text.translate(_LATEX).replace(r"theta\_0", r"$\theta_0$")


def to_csv(tables: Sequence[Table]) -> str:
    """One line a value: table, method, metric, mean, std, seeds that define it, interval; full precision, base units."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["table", "method", "metric", "mean", "std", "seeds", "low", "high"])
    for table in tables:
        for label, values in table.rows:
            for column, value in zip(table.columns, values, strict=True):
                numbers = ["" if number is None else repr(number) for number in (value.mean, value.std)]
                ends = ["", ""] if value.interval is None else [repr(end) for end in value.interval]
                writer.writerow([table.title, label, column.metric, *numbers, value.count, *ends])
    return output.getvalue()


def _grid(table: Table, escape: Callable[[str], str], bold: Callable[[str], str], pm: str) -> list[list[str]]:
    """Cells as text, the best in bold."""
    best = [table.best(index) for index in range(len(table.columns))]
    grid = []
    for row, (label, values) in enumerate(table.rows):
        cells = [escape(label)]
        for index, (column, value) in enumerate(zip(table.columns, values, strict=True)):
            text = escape(format_value(value, column)).replace("±", pm)
            cells.append(bold(text) if row in best[index] else text)
        grid.append(cells)
    return grid


FORMS: dict[str, Callable[[Sequence[Table]], str]] = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
"""Formats by file ending."""


def parse_formats(text: str) -> list[str]:
    """Format names, with commas between them.

    Raises:
        UserError: one is unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMS:
            raise UserError(f"unknown format {name!r}: {suggest(name, FORMS)}")
    return names
