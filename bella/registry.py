"""Names to things, without importing the things.

A registry maps a name to "module:attribute". The module is imported when the name is resolved, not when it is listed,
so listing stays instant and a broken plugin harms only those who ask for it. Other packages register through entry
points of the same form; built-in names are declared where the registry is made.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from bella.errors import UserError, suggest


@dataclass(frozen=True)
class Entry:
    """One registered name: where it lives ("module:attribute"), a line about it, and who registered it."""

    name: str
    target: str
    summary: str
    origin: str


class BrokenEntry(UserError):  # noqa: N818 - it says what is broken
    """What is registered cannot be imported."""


class Registry:
    """The names of one kind of thing (methods, problems, ...).

    Args:
        kind: what the names are, in the singular, for messages ("method").
        group: the entry-point group other packages register in ("bella.methods").
        builtin: name -> (target, summary) of what ships with this project.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, tuple[str, str]]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = {name: Entry(name, target, summary, "bella-bench") for name, (target, summary) in builtin.items()}
        self._entries: dict[str, Entry] | None = None

    def entries(self) -> dict[str, Entry]:
        """Everything registered, built-in first, then plugins by name. A plugin cannot replace a built-in name."""
        if self._entries is None:
            self._entries = dict(self._builtin)
            for point in sorted(metadata.entry_points(group=self.group), key=lambda point: point.name):
                origin = point.dist.name if point.dist is not None else point.module
                if point.name in self._builtin:
                    warnings.warn(
                        f"{origin} registers the {self.kind} {point.name!r}, which bella-bench already has: it is left out; "
                        "rename it in that package's entry points",
                        stacklevel=2,
                    )
                    continue
                self._entries[point.name] = Entry(point.name, point.value, f"from {point.value}", origin)
        return self._entries

    def names(self) -> list[str]:
        """All registered names, in the order they are listed."""
        return list(self.entries())

    def entry(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            UserError: the name is unknown; the message suggests the nearest one.
        """
        entries = self.entries()
        if name not in entries:
            raise UserError(f"unknown {self.kind} {name!r}: {suggest(name, entries)}")
        return entries[name]

    def resolve(self, name: str) -> Any:
        """Import what a name stands for.

        Raises:
            UserError: the name is unknown, or its module cannot be imported.
        """
        entry = self.entry(name)
        try:
            return load_target(entry.target)
        except (Exception, SystemExit) as error:  # a module of another package may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BrokenEntry(f"{self.kind} {name!r} ({entry.target}, from {entry.origin}) cannot be loaded: {reason}") from error


def load_target(target: str) -> Any:
    """Import "module:attribute" (dots allowed in the attribute)."""
    module_name, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in attribute.split(".") if attribute else []:
        found = getattr(found, part)
    return found
