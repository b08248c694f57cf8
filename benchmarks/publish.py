"""`bella publish`: a finished suite's records, tables and figures go to results/<suite>; particles and logits do not."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bella.errors import UserError
from benchmarks.across import compared_pairs, ensemble_curves
from benchmarks.equivalent import write_curves
from benchmarks.examples import write_examples
from benchmarks.figures import make_figures, write_figures
from benchmarks.records import FILE, check_name, write_text
from benchmarks.stored import find_runs
from benchmarks.tables import FORMS, group_runs, make_tables

COSTS = ("costs.json", "costs.md")
"""What `bella costs SUITE --out` has written."""

LIMIT_BYTES = 25 * 2**20
"""The most that the results folder may hold in all."""


def publish(source: Path, results: Path) -> Path:
    """Copy a suite's records, suite file and tables to results/<suite>, replacing what is there.

    The costs of its runs, where `bella costs SUITE --out` has worked them out, are copied as well, or alone. A folder of
    measurements that `bella speed` or `bella scaling` has written (`--out FILE`) goes to results/speed, with a table of each.

    Raises:
        UserError: there are no records, the suite has no usable name, or the results folder would grow too large.
    """
    speeds = _speed_measurements(source)
    if speeds:
        return _replace(source, results / "speed", lambda made: _write_speeds(speeds, made), results)
    costs = [source / name for name in COSTS if (source / name).is_file()]
    if not costs or (source / "runs").exists():
        find_runs(source)  # refuses an empty folder and damaged records
    suite_file = source / "suite.yaml"
    try:
        name = check_name(str(yaml.safe_load(suite_file.read_text())["name"]), f"{suite_file}: name")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{suite_file}: cannot tell the suite's name; run the suite again to write it") from error

    def write(made: Path) -> None:
        for path in sorted(source.glob(f"runs/*/*/*/{FILE}")):
            copy = made / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        for path in (suite_file, *costs):
            shutil.copyfile(path, made / path.name)
        if (made / "runs").exists():
            for run in find_runs(source) if compared_pairs(source) else ():
                write_examples(run, made / run.folder.relative_to(source))
            curves = ensemble_curves(source, group_runs(source))
            if curves:
                write_curves(curves, made)
            tables = make_tables(made)
            for ending, form in FORMS.items():
                (made / f"tables.{ending}").write_text(form(tables), encoding="utf-8")
            write_figures(make_figures(source), made / "figures")

    return _replace(source, results / name, write, results)


def _replace(source: Path, target: Path, write: Callable[[Path], None], results: Path) -> Path:
    """Have a folder written, and put it in the place of what is there; nothing changes where that fails."""
    if source.resolve() == target.resolve():
        raise UserError(f"{source} is the published folder itself: publish from the folder the suite was run in")
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=results, prefix=".publishing-") as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        write(made)
        others = [p for p in results.iterdir() if p != target and p != Path(scratch)]
        size = folder_bytes(made) + sum(folder_bytes(p) for p in others)
        if size > LIMIT_BYTES:
            raise UserError(f"{results} would hold {size / 2**20:.1f} MiB, the limit is {LIMIT_BYTES >> 20}: publish fewer runs")
        if target.exists():
            shutil.move(target, Path(scratch) / "replaced")
        made.rename(target)
    return target


def _speed_measurements(source: Path) -> dict[str, dict[str, Any]]:
    """What `bella speed` has written into a folder, by file name; nothing in a suite's folder."""
    found = {}
    for path in sorted(source.glob("*.json")) if not (source / "suite.yaml").exists() else ():
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}): delete it, or measure again") from error
        if not isinstance(content, dict) or not {"setting", "environment", "command"} <= set(content):
            raise UserError(f"{path}: no measurement of `bella speed` or `bella scaling`: take it out of the folder")
        found[path.name] = content
    return found


def _write_speeds(speeds: Mapping[str, dict[str, Any]], made: Path) -> None:
    from benchmarks.scaling import scaling_lines  # and with it torch, which other results do without
    from benchmarks.speed import speed_lines

    parts = ["# Speed"]
    for name, content in speeds.items():
        write_text(made / name, json.dumps(content, indent=1) + "\n")
        lines = scaling_lines if "rows" in content else speed_lines
        parts.append("\n".join([f"## {Path(name).stem}", "", f"    {content['command']}", "", *lines(content)]))
    write_text(made / "speed.md", "\n\n".join(parts) + "\n")


def folder_bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
