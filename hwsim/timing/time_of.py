"""Time of a decode: by the closed form, by running sums, or by the event engine."""

from __future__ import annotations

from collections.abc import Sequence

from hwsim.errors import SettingError
from hwsim.masking.observers import Observer, tell_progress
from hwsim.timing import closed_form as formula
from hwsim.timing import in_order
from hwsim.timing.events import run_events
from hwsim.timing.moments import Beginning, MomentObserver
from hwsim.timing.overlap import Overlap
from hwsim.timing.times import Timing
from hwsim.timing.work import Decode, make_work

PHASE = "time"


def time_of(
    decode: Decode,
    mode: type[Overlap],
    *,
    closed_form: bool = False,
    observers: Sequence[Observer] = (),
    beginning: Beginning | None = None,
) -> Timing:
    """The time of every token, and where it goes.

    Args:
        decode: the decode.
        mode: what may happen at the same time.
        closed_form: whether to use the model of the paper instead of the event engine.
        observers: receive the progress; a `MomentObserver` also receives the moments.
        beginning: description of the decode for each `MomentObserver`.

    Raises:
        SettingError: the closed form does not support the mode.
    """
    if closed_form:
        if mode.closed_form is None:
            raise SettingError(f"--timing closed-form knows no --overlap {mode.name}; leave it out, or take events")
        return formula.closed_form(decode, mode.closed_form)
    total, thermal = decode.counts.tokens, decode.device.flash.thermal
    listeners, moments = tuple(observers), [observer for observer in observers if isinstance(observer, MomentObserver)]

    def progress(done: int) -> None:
        tell_progress(listeners, PHASE, done, total)

    if mode.in_order and not decode.fills and not moments:  # nothing can interleave
        plans = decode.placement.plans
        parts = (make_work(decode, rows) for rows in in_order.blocks(total, plans.layers, plans.slots))
        return in_order.run_in_order(parts, thermal=thermal, progress=progress)
    for observer in moments if beginning else ():
        assert beginning is not None
        observer.begin(beginning)
    return run_events(make_work(decode), overlap=mode, thermal=thermal, observers=moments, progress=progress)
