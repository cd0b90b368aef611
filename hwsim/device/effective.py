"""The effective profile of a run: without ignored mechanisms, and with the DRAM rate of one engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hwsim.device.profile import Profile
from hwsim.errors import SettingError, did_you_mean

MECHANISMS = (
    "pages", "latency", "requests", "spread", "thermal", "compute", "overhead", "selection", "bookkeeping",
)  # fmt: skip
"""Names for ``--ignore``: the mechanisms that a profile may describe beyond flat rates."""


def effective(profile: Profile, ignore: Sequence[str] = (), engine: str | None = None) -> Profile:
    """The profile that a run uses.

    Args:
        profile: of the device.
        ignore: names from `MECHANISMS` to leave out.
        engine: the profile's engine that reads DRAM; None: the rate of all engines together.

    Raises:
        SettingError: the profile has no such engine.
    """
    flash: dict[str, Any] = {}
    compute: dict[str, Any] = {}
    for name in ignore:
        if name == "pages":
            flash["page_size"] = None
        elif name == "latency":
            flash["latency"] = None
        elif name == "requests":
            flash |= {"table": None, "queue": None}
        elif name in ("thermal", "spread"):
            flash[name] = None
        elif name == "compute":
            compute |= {"rate": None, "rates": None}
        else:
            compute[name] = None
    update: dict[str, Any] = {}
    if flash:
        update["flash"] = profile.flash.model_copy(update=flash)
    if compute and profile.compute:
        update["compute"] = profile.compute.model_copy(update=compute)
    if engine is not None:
        engines = profile.dram.engines or {}
        if engine not in engines:
            hint = did_you_mean(engine, engines) if engines else ": it names none"
            raise SettingError(f"--engine {engine}: {profile.name} has no such engine{hint}")
        update["dram"] = profile.dram.model_copy(update={"bandwidth": engines[engine]})
    return profile.model_copy(update=update) if update else profile
