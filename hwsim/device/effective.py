"""The device as a run sees it: the profile, less what is ignored, and with the engine that reads DRAM."""

from __future__ import annotations

from typing import Any

from hwsim.device.profile import Profile
from hwsim.errors import SettingError, did_you_mean
from hwsim.simulation.settings import Settings


def effective(profile: Profile, settings: Settings) -> Profile:
    """The profile that a replay with these settings runs on.

    Raises:
        SettingError: the profile knows no such engine.
    """
    flash: dict[str, Any] = {}
    compute: dict[str, Any] = {}
    for name in settings.ignore:
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
    if settings.engine is not None:
        engines = profile.dram.engines or {}
        if settings.engine not in engines:
            known = did_you_mean(settings.engine, engines) if engines else ": it names none"
            raise SettingError(f"--engine {settings.engine}: {profile.name} has no such engine{known}")
        update["dram"] = profile.dram.model_copy(update={"bandwidth": engines[settings.engine]})
    return profile.model_copy(update=update) if update else profile
