"""`bella report`: a results folder as one self-contained page, from stored records and logits alone."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.failures import find_failures
from benchmarks.figures import Drawn, make_figures, write_figures
from benchmarks.records import write_text
from benchmarks.stored import StoredRun
from benchmarks.tables import Table, format_value, group_runs, make_tables

FILE = "report.html"


def write_report(folder: Path, tables: list[Table] | None = None) -> Path:
    """Write DIR/report.html and DIR/figures/*.svg, with the folder's tables where they are made already.

    Raises:
        UserError: the folder has no records, or something in it is damaged.
    """
    figures = make_figures(folder)
    write_figures(figures, folder / "figures")
    path = folder / FILE
    write_text(path, render(folder, make_tables(folder) if tables is None else tables, figures))
    return path


def render(folder: Path, tables: list[Table], figures: Mapping[str, Drawn]) -> str:
    """The page: leaderboard, tables, figures, and how to repeat each run; every value is escaped."""
    import jinja2

    grouped = group_runs(folder)
    suite_text = _suite_text(folder)
    suite = _suite(suite_text)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    )
    runs = [run for rows in grouped.values() for members in rows.values() for run in members]
    return template.render(
        suite=suite.get("name", folder.name),
        description=suite.get("description", ""),
        suite_text=suite_text,
        failures=find_failures(folder),
        tasks=list(dict.fromkeys(table.task for table in tables)),
        problems=list(grouped),
        leaderboard=leaderboard(tables),
        tables=[_table(table) for table in tables],
        figures=[
            {
                "problem": figure.problem,
                "task": figure.task,
                "title": figure.title,
                "data": base64.b64encode(figure.svg).decode(),
            }
            for figure in figures.values()
        ],
        runs=[_run(run, str(suite.get("name", folder.name))) for run in runs],
    )


def leaderboard(tables: list[Table]) -> dict[str, Any]:
    """The first table of every task, side by side: a row for each method on each problem."""
    first: dict[tuple[str, str], Table] = {}
    for table in tables:
        first.setdefault((table.problem, table.task), table)
    columns: dict[tuple[str, str], Any] = {}
    for table in first.values():
        for column in table.columns:
            if column.better is not None:
                columns.setdefault((table.task, column.metric), column)
    cells: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for table in first.values():
        for row, cell in zip(table.rows, _table(table)["rows"], strict=True):
            own = cells.setdefault((table.problem, row[0]), {})
            for column, value in zip(table.columns, cell["cells"], strict=True):
                own[table.task, column.metric] = {**value, "task": table.task}
    empty = {"text": "–", "value": "", "best": False}
    return {
        "columns": [{"task": task, "title": f"{column.title}"} for (task, _), column in columns.items()],
        "rows": [
            {"problem": problem, "method": method, "cells": [own.get(key, {**empty, "task": key[0]}) for key in columns]}
            for (problem, method), own in cells.items()
        ],
    }


def _table(table: Table) -> dict[str, Any]:
    best = [table.best(index) for index in range(len(table.columns))]
    return {
        "task": table.task,
        "problem": table.problem,
        "title": table.title,
        "caption": table.caption,
        "columns": [column.title for column in table.columns],
        "rows": [
            {
                "method": label,
                "cells": [
                    {
                        "text": format_value(value, column),
                        "value": "" if value.mean is None else repr(value.mean),
                        "best": number in best[index],
                    }
                    for index, (value, column) in enumerate(zip(values, table.columns, strict=True))
                ],
            }
            for number, (label, values) in enumerate(table.rows)
        ],
    }


def _run(run: StoredRun, suite: str) -> dict[str, Any]:
    info = run.record.run
    command = ["bella", "run", f"{suite}.yaml", "--methods", info.label, "--seeds", str(info.seed)]
    return {
        "problem": info.problem,
        "label": info.label,
        "seed": info.seed,
        "hash": info.hash,
        "command": shlex.join(command),
        "config": json.dumps(info.config, indent=1),
        "environment": json.dumps(run.record.environment, indent=1),
    }


def _suite_text(folder: Path) -> str:
    try:
        return (folder / "suite.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _suite(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
