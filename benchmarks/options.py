"""Options of a problem or a task: typed, named, and refused when misspelt. Apart from the rest: tables need it without torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Each field is an option; a problem's are settings of a suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)
