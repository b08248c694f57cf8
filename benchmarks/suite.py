"""Suites: which methods, problems, tasks and seeds make one table; YAML files, narrowed and overridden by the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bella.errors import UserError, suggest
from benchmarks.records import check_name, write_text
from benchmarks.registries import SUITES

SUITE_FILE = "suite.yaml"


def _entries(value: Any, key: str) -> Any:
    """A list in which a plain name stands for an entry without anything else."""
    return [{key: entry} if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    settings: dict[str, Any] = Field(default_factory=dict)


class MethodEntry(_Entry):
    """A method of a suite: its name, a label for tables where one method stands in several rows, and its own settings."""

    method: str
    label: str | None = None

    @property
    def row(self) -> str:
        """What tables call it."""
        return self.label or self.method


class TaskEntry(BaseModel):
    """A task of a suite, and its options."""

    model_config = ConfigDict(extra="forbid")
    task: str
    options: dict[str, Any] = Field(default_factory=dict)


class ProblemEntry(_Entry):
    """A problem of a suite, its own settings, and which of the suite's tasks are asked there (left out: all).

    Options given here are added to those of the suite's task of that name.
    """

    problem: str
    tasks: list[TaskEntry] | None = None

    @field_validator("tasks", mode="before")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        return _entries(value, "task")


class Suite(BaseModel):
    """A suite file. In its lists a plain name stands for an entry without settings.

    compare: pairs of labels whose difference, the first less the second, tables show with a 95 % interval.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    description: str = ""
    methods: list[MethodEntry] = Field(min_length=1)
    problems: list[ProblemEntry] = Field(min_length=1)
    tasks: list[TaskEntry] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    compare: list[tuple[str, str]] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("methods", "problems", "tasks", mode="before")
    @classmethod
    def _plain_names(cls, value: Any, info: Any) -> Any:
        return _entries(value, info.field_name.rstrip("s"))

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value) or min(value) < 0:
            raise ValueError("seeds must be different numbers, 0 or more")
        return value


def load_suite(name: str) -> Suite:
    """A suite by its registered name, or from a YAML file.

    Raises:
        UserError: it is unknown, cannot be read, or says something a suite does not have.
    """
    file = Path(name)
    if file.suffix not in (".yaml", ".yml"):
        if name not in SUITES.names() and file.exists():
            raise UserError(f"{name}: a suite file ends in .yaml")
        file = Path(SUITES.resolve(name))
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such suite file; registered suites: {', '.join(SUITES.names())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # its constructors raise ValueError, for a date of month 13
        raise UserError(f"{file}: no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: a suite is a mapping with methods, problems and tasks")
    for key in content:
        if key not in Suite.model_fields:
            raise UserError(f"{file}: unknown key {key!r}: {suggest(str(key), Suite.model_fields)}")
    try:
        suite = Suite.model_validate({"name": file.stem, **content})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{file}: {place}: {problem['msg']}") from error
    check_name(suite.name, f"{file}: name")
    rows = [entry.row for entry in suite.methods]
    for name in (name for pair in suite.compare for name in pair):
        if name not in rows:
            raise UserError(f"{file}: compare: {name!r} is no method or label of this suite: {suggest(name, rows)}")
    return suite


def narrow(
    suite: Suite,
    methods: Sequence[str] | None,
    tasks: Sequence[str] | None,
    seeds: Sequence[int] | None,
    problems: Sequence[str] | None = None,
) -> Suite:
    """A suite with only some of its methods, tasks or problems, or with other seeds; one that it lacks is added.

    Raises:
        UserError: a name is unknown.
    """

    def chosen(entries: list[Any], names: Sequence[str] | None, key: str, make: Any) -> list[Any]:
        if names is None:
            return entries
        found = []
        for name in names:
            own = [e for e in entries if name in (getattr(e, key), getattr(e, "label", None))]
            found += own or [make(**{key: name})]
        return found

    kept = chosen(suite.methods, methods, "method", MethodEntry)
    rows = {entry.row for entry in kept}
    changed: dict[str, Any] = {
        "problems": chosen(suite.problems, problems, "problem", ProblemEntry),
        "methods": kept,
        "compare": [pair for pair in suite.compare if rows.issuperset(pair)],
        "tasks": chosen(suite.tasks, tasks, "task", TaskEntry),
        "seeds": suite.seeds if seeds is None else list(seeds),
    }
    return validated(Suite, {**dict(suite), **changed}, "command line")


def with_overrides(suite: Suite, overrides: Mapping[str, Any]) -> Suite:
    """A suite that plans the same runs without overrides: what is stored beside results says how to repeat them."""

    def less(entries: Sequence[Any]) -> list[Any]:
        kept = [{k: v for k, v in entry.settings.items() if k not in overrides} for entry in entries]
        return [entry.model_copy(update={"settings": settings}) for entry, settings in zip(entries, kept, strict=True)]

    changed = {"methods": less(suite.methods), "problems": less(suite.problems), "settings": {**suite.settings, **overrides}}
    return suite.model_copy(update=changed)


def write_suite(suite: Suite, folder: Path) -> None:
    """Write a suite beside its results: it says how to repeat them.

    Raises:
        OSError: the folder cannot be written.
    """
    text = yaml.safe_dump(suite.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    path = folder / SUITE_FILE
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        write_text(path, text)


def validated(model: type[BaseModel], values: Mapping[str, Any], where: str) -> Any:
    """Values as a model.

    Raises:
        UserError: names the first that does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{where}: {name} is {problem['input']!r}: {problem['msg']}") from error
