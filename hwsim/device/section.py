"""The fields of every section of a profile: the source of its numbers, and the confidence in them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Confidence = Literal["measured", "vendor", "derived", "assumed"]


class Section(BaseModel):
    """Base of the sections of a profile; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = None
    confidence: Confidence | None = None
    note: str | None = None


def inherited(section: Section, parent: Section) -> Section:
    """The section, with its parent's source and confidence if it names none."""
    update: dict[str, Any] = {
        field: getattr(parent, field)
        for field in ("source", "confidence")
        if getattr(section, field) is None and getattr(parent, field) is not None
    }
    return section.model_copy(update=update) if update else section
