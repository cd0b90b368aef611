"""The options of a run besides trace, device, policy and eviction, each declared once.

The fields of `Settings` determine the options of the commands, the keys of a sweep and of a file of settings, the
keywords of the Python interface, the settings that a result states, and the reference page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from hwsim.cache.cache import CacheSetup
from hwsim.cache.unit_sets import UnitSets, read_units
from hwsim.device.effective import MECHANISMS
from hwsim.errors import SettingError, UnitError, did_you_mean
from hwsim.evictions import Admission
from hwsim.memory.neuron_order import Layout, read_layout
from hwsim.memory.shares import Scope, Shares, parse_shares, read_shares, shares_file
from hwsim.model.shape import Bits
from hwsim.prefetch import Prefetch
from hwsim.simulation.plugins import PREFETCHES
from hwsim.timing import overlap as overlaps
from hwsim.timing.reads import ReadSetup
from hwsim.trace.steps import Together
from hwsim.util.explain import problem
from hwsim.util.option import RUNS, Option, declared, is_whole
from hwsim.util.units import parse, shorten

_REPLAYS = ("replay", "sweep")
_STATISTICS = ("trace curve", "trace locality")
_PANEL = "How the device is used"
_STEPS = "What goes through the model together"


def read_bits(text: str | Bits) -> Bits:
    """Read bits such as ``mlp=4.5,attention=4``; other parts keep their defaults.

    ``stored`` stands for the stored bytes of all weights; parts that are given beside it have bits of their own.

    Raises:
        SettingError: a part is unknown, or a number is out of bounds.
        ValueError: the value is neither text nor `Bits`.
    """
    if isinstance(text, Bits):
        return text
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is neither text nor Bits")
    values: dict[str, Any] = {}
    known = [name for name in Bits.model_fields if name != "stored"]
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if part.strip() in ("", "stored"):
            values |= {"stored": True} if part.strip() else {}
            continue
        if name.strip() == "stored":
            raise SettingError(f"--bits {part}: write stored alone, as in --bits stored,kv_cache=16")
        if not equals or not name.strip():
            raise SettingError(f"--bits {part}: write --bits key=value, or --bits stored")
        values[name.strip()] = value.strip()
    if unknown := [name for name in values if name not in Bits.model_fields]:
        raise SettingError(f"--bits {unknown[0]}: no such part of a model{did_you_mean(unknown[0], known)}")
    try:
        return Bits.model_validate(values)
    except ValidationError as error:
        wrong = problem(error)
        raise SettingError(f"--bits {wrong.field}={wrong.value}: {wrong.rule}") from error


def _file(read: Callable[[Path], Any]) -> Callable[[Any], Any]:
    """A function that reads the file of a path, and returns other values unchanged."""
    return lambda given: read(Path(given)) if isinstance(given, str | Path) else given


def _shares(given: Any) -> Any:
    if not isinstance(given, str | Path):
        return given
    text = str(given)
    if text == "equal":
        return None
    if file := shares_file(text):
        return read_shares(file)
    return Shares(None, text) if text == "traffic" else parse_shares(text)


def _size(option: str) -> Callable[[Any], Any]:
    """A function that reads a text such as 256KiB as bytes, and returns other values unchanged."""

    def read(given: Any) -> Any:
        if isinstance(given, bool):
            raise ValueError
        if not isinstance(given, str):
            return given
        try:
            return int(parse(given, "size")) if given.strip("0") else 0
        except UnitError as error:
            raise SettingError(f"--{option} {given}: {error}") from error

    return read


def _gap(given: Any) -> Any:
    return None if given == "auto" else _size("gap")(given)


def _cache_size(given: Any) -> Any:
    size = _size("cache")(given)
    if size is not None and not is_whole(size, 0):
        raise ValueError
    return size


def _accept(given: Any) -> Any:
    if given in (None, "trace"):
        return given
    number = float(given)
    if isinstance(given, bool) or not 0 <= number <= 1:
        raise ValueError
    return number


def _dram(given: Any) -> Any:
    if not isinstance(given, str) and not is_whole(given, 0):
        raise ValueError
    return given


def _mechanisms(given: str | Sequence[str]) -> tuple[str, ...]:
    listed = given.split(",") if isinstance(given, str) else given
    names = tuple(str(name).strip() for name in listed if name)
    for name in names:
        if name not in MECHANISMS:
            raise SettingError(f"--ignore {shown(name)}: no such mechanism{did_you_mean(name, MECHANISMS)}")
    return names


class Settings(BaseModel):
    """All options of a run besides trace, device, policy and eviction.

    A field accepts what a user gives (text, a number, a file), or the value that is made of it.

    Raises:
        SettingError: an option is impossible.
        HwsimError: a file is missing or has another content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    admission: Annotated[
        Admission | None,
        Option(
            "always: what a token needs enters the cache first. bypass: only if the eviction ranks it above what is "
            "there.",
            given=("always", "bypass"),
            shown="always, where the eviction has no word of its own",
        ),
    ] = None
    pin: Annotated[
        UnitSets | None,
        Option(
            "Units that are in the caches from the start and never leave, as --save-cache.",
            given=Path, read=_file(read_units), metavar="FILE", python="UnitSets",
        ),
    ] = None  # fmt: skip
    warm: Annotated[
        UnitSets | None,
        Option(
            "What the caches hold when a sequence begins, as --save-cache wrote it.",
            given=Path, read=_file(read_units), metavar="FILE", python="UnitSets",
        ),
    ] = None  # fmt: skip
    lora: Annotated[
        Path | None,
        Option(
            "LoRA adapter, of `hwsim train lora` or of peft; on wherever a mask is.",
            given=Path, read=Path, metavar="FOLDER", commands=(*RUNS, "tune"),
        ),
    ] = None  # fmt: skip
    lora_merged: Annotated[
        bool,
        Option("The adapter is merged into the weights: no bytes of its own.", given=bool, commands=(*RUNS, "tune")),
    ] = False
    cache_scope: Annotated[
        Scope,
        Option(
            "matrix: each group of each layer has a cache; layer: one for a layer; global: one for all.",
            given=("matrix", "layer", "global"),
            commands=(*RUNS, *_STATISTICS),
        ),
    ] = "matrix"
    cache_shares: Annotated[
        Shares | None,
        Option(
            "Bytes of the caches: equal, in proportion to Flash traffic under equal shares, to weights of groups such "
            "as input=2,down=1, or to the traffic of a --json.",
            read=_shares, metavar="equal|traffic|A=N,B=N|FILE", text="equal", python="Path | Shares",
        ),
    ] = None  # fmt: skip
    block: Annotated[
        int,
        Option(
            "Neighbouring rows or columns that are read and cached as one unit.",
            given=int, least=1, most=10**8, unit="indices",
        ),
    ] = 1  # fmt: skip
    layout: Annotated[
        Layout | None,
        Option(
            "Order of the neurons in Flash, from `hwsim fit layout`.",
            given=Path, read=_file(read_layout), metavar="FILE", shown="the model's own", python="Layout",
        ),
    ] = None  # fmt: skip
    dram: Annotated[
        int | str | None,
        Option(
            "DRAM for the model: a size (4GB), or a share of its weight bytes (50%), the KV cache on top.",
            read=_dram, metavar="SIZE|SHARE", shown="the profile's budget", unit="bytes", python="int",
            rule="bytes from 0, text such as '4 GB' or '50%', or None",
            commands=(*RUNS, "tune", "train lora", "train prefetch"),
        ),
    ] = None  # fmt: skip
    cache: Annotated[
        int | None,
        Option(
            "DRAM for the caches alone; what is pinned lies beside it. Not together with --dram.",
            read=_cache_size, metavar="SIZE", shown="what --dram leaves", unit="bytes", python="int",
            rule="bytes from 0, text such as '4 GB', or None", commands=(*RUNS, "tune"),
        ),
    ] = None  # fmt: skip
    kv_tokens: Annotated[
        int | None,
        Option(
            "Tokens that the KV cache is reserved for.",
            given=int, least=1, most=10**9, unit="tokens", shown="longest sequence",
            commands=("replay", "eval", "sweep", "plan", *_STATISTICS),
        ),
    ] = None  # fmt: skip
    bits: Annotated[
        Bits,
        Option(
            "Bits of a number; also predictor=4, adapter=16, state=16. stored: weights as the files store them.",
            read=read_bits, metavar="stored|PART=BITS,...", text="mlp=4,attention=4,lm_head=4,kv_cache=8", unit="bits",
            rule="text or hwsim.model.Bits", python="Bits",
            commands=(*RUNS, "tune", "plan", "train lora", *_STATISTICS),
        ),
    ] = Bits()  # fmt: skip
    timing: Annotated[
        str, Option("The event engine, or the closed form of the paper.", given=("events", "closed-form"))
    ] = "events"
    overlap: Annotated[
        str, Option(overlaps.option_help(), given=tuple(overlaps.names()), commands=(*RUNS, "tune", "plan"))
    ] = "none"
    seed: Annotated[
        int,
        Option(
            "Seed of the policies' random numbers.",
            given=int, least=0, commands=(*RUNS, "tune", "train lora", "trace curve"),
        ),
    ] = 0  # fmt: skip
    bundle: Annotated[
        bool, Option("All slices of a unit lie in one piece of Flash: one read.", given=bool, panel=_PANEL)
    ] = False
    packed: Annotated[
        bool,
        Option(
            "Units lie in Flash without gaps, rather than each on a page of its own.",
            given=bool, panel=_PANEL, commands=_REPLAYS,
        ),
    ] = False  # fmt: skip
    merge: Annotated[
        int | None,
        Option(
            "Neighbours in Flash become one read of up to this size.",
            read=_size("merge"), metavar="SIZE", shown="each on its own", unit="bytes", panel=_PANEL, python="int",
            commands=_REPLAYS,
        ),
    ] = None  # fmt: skip
    gap: Annotated[
        int | None,
        Option(
            "Holes that --merge reads through; auto: whichever take Flash least, batch by batch.",
            read=_gap, metavar="SIZE|auto", text="0", unit="bytes", panel=_PANEL, python="int", commands=_REPLAYS,
        ),
    ] = 0  # fmt: skip
    prefetch: Annotated[
        tuple[str, Prefetch] | None,
        Option(
            "Guesses what the next layer needs, under --overlap prefetch; `hwsim list prefetches` lists the rules.",
            metavar="NAME|FILE.py", panel=_PANEL, python="Path | Prefetch", commands=_REPLAYS,
        ),
    ] = None  # fmt: skip
    prefetch_parameters: Annotated[
        dict[str, Any] | None,
        Option(
            "Parameters of --prefetch; on the command line --set prefetch.KEY=VALUE.",
            given=dict, read=dict, rule="names and values, or None", python="Mapping[str, Any]", commands=("sweep",),
        ),
    ] = None  # fmt: skip
    fills: Annotated[
        bool,
        Option(
            "What comes from Flash is written to DRAM and read again, beside all other reads.", given=bool, panel=_PANEL
        ),
    ] = False
    engine: Annotated[
        str | None,
        Option(
            "Which of the profile's engines reads DRAM, such as cpu.",
            metavar="NAME", shown="the profile's bandwidth", panel=_PANEL,
        ),
    ] = None  # fmt: skip
    ignore: Annotated[
        tuple[str, ...],
        Option(
            f"Parts of the profile that are left out: {', '.join(MECHANISMS)}.",
            read=_mechanisms, metavar="NAME,...", text="", shown="none", panel=_PANEL, python="Sequence[str]",
        ),
    ] = ()  # fmt: skip
    kv_window: Annotated[
        int | None,
        Option(
            "Entries of the KV cache that a token reads and DRAM holds at most.",
            given=int, least=1, most=10**9, unit="tokens", shown="all", panel=_PANEL, commands=_REPLAYS,
        ),
    ] = None  # fmt: skip
    prefill_chunk: Annotated[
        int | None,
        Option(
            "Tokens of a prompt that go through the model at once.",
            given=int, least=1, most=10**9, unit="tokens", shown="the whole prompt", panel=_PANEL,
            commands=(*RUNS, *_STATISTICS),
        ),
    ] = None  # fmt: skip
    prefill: Annotated[
        str | None,
        Option(
            "dense: a prompt reads all weights and leaves the caches empty. cached: it goes through the caches.",
            given=("dense", "cached"), shown="cached for experts, else dense", panel=_STEPS,
            commands=(*RUNS, *_STATISTICS),
        ),
    ] = None  # fmt: skip
    keep_cache: Annotated[
        bool,
        Option(
            "Caches keep their content from one sequence to the next, as in a conversation.",
            given=bool, panel=_STEPS, commands=(*_REPLAYS, *_STATISTICS),
        ),
    ] = False  # fmt: skip
    lockstep: Annotated[
        int,
        Option(
            "Sequences that are decoded together; one that ends leaves, no other joins.",
            given=int, least=1, most=10**5, unit="sequences", panel=_STEPS, commands=_REPLAYS,
        ),
    ] = 1  # fmt: skip
    speculate: Annotated[
        int,
        Option(
            "Drafted tokens that each step verifies; making them costs nothing here.",
            given=int, least=0, most=1000, unit="tokens", panel=_STEPS, commands=_REPLAYS,
        ),
    ] = 0  # fmt: skip
    accept: Annotated[
        float | str | None,
        Option(
            "Probability that a draft is accepted, given the ones before it, drawn with --seed; trace: as the trace "
            "says.",
            read=_accept, metavar="P|trace", panel=_STEPS, python="float | str", rule="from 0 to 1, or trace",
            commands=_REPLAYS,
        ),
    ] = None  # fmt: skip
    per_token: Annotated[
        bool, Option("Keep every token in the JSON.", given=bool, commands=("replay", "eval", "sweep"))
    ] = False

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        """Read the given values; errors are one line."""
        if not isinstance(values, dict):
            return make(values)
        options = declared(cls)
        ready = {}
        for name, given in values.items():
            if name not in options:
                raise SettingError(f"{name}: is no setting{did_you_mean(name, options)}")
            try:
                ready[name] = options[name].value(given)
            except (TypeError, ValueError) as error:
                raise impossible(name, given, options[name].rule) from error
        parameters = ready.pop("prefetch_parameters", None) or {}
        if parameters or not isinstance(ready.get("prefetch"), tuple | None):
            ready["prefetch"] = make_prefetch(ready.get("prefetch"), parameters)
        try:
            return make(ready)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise impossible(name, values[name], options[name].rule) from error

    @model_validator(mode="after")
    def _check(self) -> Settings:
        """Refuse options that contradict each other."""
        if self.cache_scope == "global" and self.cache_shares:
            raise SettingError("--cache-shares: one cache for the whole model has no shares; leave it out")
        if self.lora_merged and self.lora is None:
            raise SettingError("--lora-merged: no adapter is given; give --lora FOLDER, too")
        if overlaps.find(self.overlap).guesses != (self.prefetch is not None):
            raise SettingError(
                "--overlap prefetch and --prefetch RULE go together: "
                + ("name a rule, such as last-token" if self.prefetch is None else "give --overlap prefetch, too")
            )
        if self.timing == "closed-form" and (options := self._beyond_the_closed_form()):
            raise SettingError(f"--timing closed-form knows no {', '.join(options)}; leave it out, or take events")
        _ = self.reads  # refuses holes without merging
        self._check_steps()
        return self

    def _check_steps(self) -> None:
        """Refuse options about steps that contradict each other."""
        if self.cache is not None and self.dram is not None:
            raise SettingError("--cache and --dram: each decides the bytes of the caches; give one of them")
        if (self.speculate > 0) != (self.accept is not None):
            raise SettingError(
                "--speculate K and --accept P go together: "
                + ("say how many drafts are accepted" if self.speculate else "say how many tokens are drafted")
            )
        if self.speculate and self.lockstep > 1:
            raise SettingError("--speculate and --lockstep: drafts of one sequence are verified; leave one of them out")

    def _beyond_the_closed_form(self) -> list[str]:
        """Options in use that only the event engine supports."""
        options = {
            f"--overlap {self.overlap}": overlaps.find(self.overlap).closed_form is None,
            "--bundle, --packed, --merge": self.reads != ReadSetup(),
            "--fills": self.fills,
        }
        return [name for name, given in options.items() if given]

    @property
    def caches(self) -> CacheSetup:
        """Admission and initial content of the caches."""
        return CacheSetup(self.admission, self.pin, self.warm)

    @property
    def reads(self) -> ReadSetup:
        """How units lie in Flash and are read."""
        return ReadSetup(self.bundle, self.packed, self.merge, self.gap)

    def together(self, *, cached_prompts: bool) -> Together:
        """What goes through the model together.

        Args:
            cached_prompts: whether prompts go through the caches where `prefill` says nothing.
        """
        prompts = cached_prompts if self.prefill is None else self.prefill == "cached"
        accept = self.accept if isinstance(self.accept, float) else 0.0
        return Together(
            prompts, self.prefill_chunk, self.lockstep, self.speculate, accept, self.keep_cache, self.seed,
        )  # fmt: skip

    def but(self, **changes: Any) -> Self:
        """A copy with other values, which are not checked."""
        return self.model_copy(update=changes)


def make_prefetch(rule: str | Path | Prefetch | None, parameters: Mapping[str, Any]) -> tuple[str, Prefetch] | None:
    """Make a prefetch rule from its name or file and its parameters; return (name in results, rule) or None.

    Raises:
        HwsimError: there is no such rule, or a parameter is unknown or impossible.
    """
    if rule is None:
        if parameters:
            raise SettingError(f"--set prefetch.{next(iter(parameters))}: nothing is read ahead; give --prefetch, too")
        return None
    return (type(rule).__name__, rule) if isinstance(rule, Prefetch) else PREFETCHES.make(str(rule), parameters)


def impossible(name: str, value: object, rule: str) -> SettingError:
    """The error for a setting that breaks a rule."""
    return SettingError(f"setting {name}={shown(value)}: must be {rule}")


def shown(value: object) -> str:
    """Text of any value for a message; the type if it has no text (a number of 5,000 digits) or raises."""
    try:
        return shorten(repr(value))
    except Exception:
        return f"a {type(value).__name__}"
