"""Settings: one flat set of names, whoever they are for.

`epochs`, `rank`, `classes`, `repulsion`: a suite or the command line names a setting once, and it goes to the part that
knows it (the training recipe, the parameterisation, the inference rule, the problem's data options). Later sources win:
a problem's own defaults, the suite's settings, its entry for the problem, its entry for the method, `--set`.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from bella.errors import UserError, suggest
from bella.fit import Recipe

HARNESS: dict[str, Any] = {
    "particles": int,
    "backbone": str,
    "head": Literal["trained", "zero-shot"],
    "chunk_size": int | None,
}
"""Settings of the harness itself: n, theta_0, what its head is, and how many particles are computed at once."""

RECIPE: dict[str, Any] = typing.get_type_hints(Recipe)


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` words to a mapping; values are read as YAML ("[1, 2]", "0.5", "null").

    Raises:
        UserError: a word without `=`, or a value that is no YAML.
    """
    settings = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set {assignment}: write key=value")
        try:
            settings[key] = parse_value(value)
        except (yaml.YAMLError, ValueError) as error:  # its constructors raise ValueError, for a date of month 13
            raise UserError(f"--set {assignment}: the value cannot be read: {str(error).splitlines()[0]}") from error
    return settings


def parse_value(text: str) -> Any:
    """A YAML scalar or list; `1e-3`, which YAML 1.1 takes for a word, is a number."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def validate(name: str, annotation: Any, value: Any, where: str) -> Any:
    """A setting's value as its type; a word with commas serves where a list is expected.

    Raises:
        UserError: it does not fit.
    """
    if isinstance(value, str) and _takes_words(annotation):
        value = [word.strip() for word in value.split(",") if word.strip()]
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{where}: {name} is {value!r}: a finite number is needed")
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where}: {name} is {value!r}: {_reason(error)}") from error


def _takes_words(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (list, tuple, Sequence, typing.get_origin(Sequence[str])) and str in typing.get_args(
        annotation
    )


def _reason(error: ValidationError) -> str:
    return "; or ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))


def check_known(settings: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse a setting that no part knows.

    Raises:
        UserError: names it, and the nearest known one.
    """
    known = set(known)
    for name in settings:
        if name not in known:
            raise UserError(f"{where}: unknown setting {name!r}: {suggest(name, known)}")


def take(settings: Mapping[str, Any], annotations: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings that one part knows, as their types."""
    return {name: validate(name, annotation, settings[name], where) for name, annotation in annotations.items() if name in settings}


def make_recipe(settings: Mapping[str, Any], default_rate: float, where: str) -> Recipe:
    """The training recipe, every default resolved.

    Raises:
        UserError: a value is out of range.
    """
    given = take(settings, RECIPE, where)
    try:
        recipe = Recipe(**given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return recipe if recipe.learning_rate is not None else dataclasses.replace(recipe, learning_rate=default_rate)
