"""What every section of a profile has: where its numbers come from, and how sure they are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Confidence = Literal["measured", "vendor", "derived", "assumed"]


class Section(BaseModel):
    """Fields that are known, and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = None
    confidence: Confidence | None = None
    note: str | None = None


def inherited(section: Section, parent: Section) -> Section:
    """The section, with its parent's source and confidence where it names none."""
    update: dict[str, Any] = {
        field: getattr(parent, field)
        for field in ("source", "confidence")
        if getattr(section, field) is None and getattr(parent, field) is not None
    }
    return section.model_copy(update=update) if update else section
