"""The one exception that means "the user can mend this": the command prints it on one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked or in what was found on disk. The message names the thing, the place and the way out."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A closing half-sentence for an unknown name: the near miss where there is one, else everything known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "none is known"
