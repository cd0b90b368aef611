"""Guesses of what comes next: by hand, by a plain loop over the masks, and as plug-ins."""

import json

import numpy as np
import pytest

from hwsim.prefetch import Prefetch
from hwsim.prefetch.last_token import LastToken
from hwsim.prefetch.oracle import Oracle
from hwsim.simulation.plugins import EVICTIONS, POLICIES, PREFETCHES
from hwsim.simulation.settings import Settings
from tests.conftest import flat_profile
from tests.runs import Told, replay
from tests.timing.cli import run_cli

DEVICE = flat_profile(flash="50 MB/s", compute={"rate": "50 MOPS"})


def run(trace, rule, policy="dip", eviction="lru", device=DEVICE, **more):
    chosen = Settings(
        dram=more.pop("dram", "60%"),
        overlap="prefetch" if rule else "pipeline",
        prefetch=rule and ("rule", rule),
        **more,
    )
    return replay(trace, device, POLICIES.make(policy)[1], EVICTIONS.make(eviction)[1], chosen, policy_name=policy)


def test_precision_and_recall_are_those_of_a_plain_loop(trace):
    """The masks of a plain replay, and what its caches hold, as a listener sees them."""
    masks: dict[tuple[int, str], list[np.ndarray]] = {}
    policy, rule = POLICIES.make("dip")[1], EVICTIONS.make("none")[1]
    replay(
        trace, DEVICE, policy, rule, Settings(dram="60%"),
        observers=[Told(lambda layer, group, token, mask: masks.setdefault((layer, group), []).append(mask.copy()))],
    )  # fmt: skip
    starts, guessed, useful, missed = {0, 34}, 0, 0, 0
    for each in masks.values():
        for token, mask in enumerate(each):
            missed += int(mask.sum())  # nothing is ever cached
            if token not in starts:
                guessed += int(each[token - 1].sum())
                useful += int((each[token - 1] & mask).sum())
    found = run(trace, LastToken(), eviction="none").prefetch
    assert found.precision == useful / guessed
    assert found.recall == useful / missed


def test_an_oracle_guesses_everything_and_nothing_else(trace):
    found = run(trace, Oracle())
    assert (found.prefetch.precision, found.prefetch.recall, found.prefetch.wasted_bytes) == (1.0, 1.0, 0)
    assert found.flash_read_bytes == run(trace, None).flash_read_bytes


@pytest.mark.parametrize("reads", [{}, {"bundle": True}, {"packed": True, "merge": 4096}])
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_a_guess_changes_time_and_bytes_read_alone(trace, reads, scope):
    plain, perfect = (run(trace, rule, cache_scope=scope, **reads) for rule in (None, Oracle()))
    for name in PREFETCHES.names():
        if name in ("trained", "hot-list", "next-router"):  # need a file, or a trace of experts
            continue
        found = run(trace, PREFETCHES.make(name)[1], cache_scope=scope, **reads)
        for key in ("unit_hits", "flash_bytes", "dram_bytes", "groups", "mlp_density"):
            assert getattr(found, key) == getattr(plain, key)
        assert found.flash_read_bytes == plain.flash_read_bytes + found.prefetch.wasted_bytes
        assert found.prefetch.wasted_bytes <= found.prefetch.read_bytes
        assert perfect.time_s.total * (1 - 1e-9) <= found.time_s.total <= plain.time_s.total * (1 + 1e-9)
    assert perfect.time_s.total < plain.time_s.total


def test_the_layer_before_tells_the_inputs_mask(trace):
    """Random layers are alike in nothing; a trace whose layers are one and the same is guessed without a mistake."""

    class Same:
        """All layers as layer 0."""

        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def read(self, layer, *rest):
            return self._inner.read(0, *rest)

    rule = PREFETCHES.make("cross-layer")[1]
    same = run(Same(trace), rule, eviction="none").prefetch
    assert run(trace, rule, eviction="none").prefetch.precision < same.precision
    # groups `down` and layer 0 go by the token before; the input of all other layers is known
    last = run(Same(trace), LastToken(), eviction="none").prefetch
    assert same.precision > last.precision


def test_what_was_counted_on_a_trace_guesses_its_masks(trace, small_trace, tmp_path):
    out = tmp_path / "guess.npz"
    run_cli("train", "prefetch", small_trace, "--policy", "dip", "--hw", "pixel8", "--dram", "60%", "-o", out)
    rule = PREFETCHES.make("trained", {"path": str(out)})[1]
    found, last = run(trace, rule, eviction="none").prefetch, run(trace, LastToken(), eviction="none").prefetch
    assert found.precision >= last.precision  # on the trace that it was counted on
    kinds = {kind: {name for name in rule.arrays if name.startswith(kind)} for kind in ("layers", "uses")}
    for kind, names in kinds.items():
        assert names == {f"{kind}/{layer:03d}/{group}" for layer in range(3) for group in ("input", "down")}
    assert len(rule.arrays) == 12
    for name in kinds["uses"]:
        assert rule.arrays[name].dtype == np.int64
        assert rule.arrays[name].ndim == 1
    for name in kinds["layers"]:
        table = rule.arrays[name]
        assert table.dtype == np.float32 and table.shape[0] == 2, name
        assert ((table > 0) & (table < 1)).all()
    said = run_cli(
        "replay", "sample", "--hw", "pixel8", "--dram", "60%", "--policy", "dip", "--overlap", "prefetch", "--prefetch",
        "trained", "--set", f"prefetch.path={out}", code=1,
    ).stderr  # fmt: skip
    assert "it was trained for another model or policy" in said
    again = run_cli("train", "prefetch", small_trace, "--policy", "dip", "--hw", "pixel8", "-o", out, code=1)
    assert "--overwrite" in again.stderr


MINE = """
import numpy as np
from hwsim.prefetch import Ahead, Prefetch


class Everything(Prefetch):
    \"\"\"All units.\"\"\"

    def guess(self, ahead: Ahead) -> np.ndarray:
        return np.ones_like(ahead.last)
"""


def test_a_file_is_a_rule(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    done = run_cli(
        "replay", "sample", "--hw", "pixel8", "--dram", "60%", "--policy", "dip", "--overlap", "prefetch", "--prefetch",
        tmp_path / "mine.py", "--json", "-",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["prefetch"]["rule"] == "mine"
    assert found["prefetch"]["recall"] == 1
    assert found["provenance"]["settings"]["prefetch"]["name"] == "mine"
    assert len(found["provenance"]["settings"]["prefetch"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return ahead.last[:, :1]", "guess() must return bool"),
        ("return ahead.last.astype(int)", "guess() must return bool"),
        ("raise KeyError('x')", "raised KeyError"),
    ],
)
def test_a_rule_that_breaks_its_contract_is_one_line(tmp_path, body, says):
    (tmp_path / "mine.py").write_text(MINE.replace("return np.ones_like(ahead.last)", body))
    done = run_cli(
        "replay", "sample", "--hw", "pixel8", "--dram", "60%", "--policy", "dip", "--overlap", "prefetch", "--prefetch",
        tmp_path / "mine.py", code=1,
    )  # fmt: skip
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--overlap", "prefetch"), "name a rule, such as last-token"),
        (("--prefetch", "last-token"), "give --overlap prefetch, too"),
        (("--overlap", "prefetch", "--prefetch", "oracel"), "oracle"),
        (("--set", "prefetch.path=x"), "nothing is read ahead"),
        (("--overlap", "prefetch", "--prefetch", "trained"), "path must be given"),
        (("--overlap", "pipeline", "--timing", "closed-form"), "knows no --overlap pipeline"),
    ],
)
def test_what_does_not_go_together_is_one_line(options, says):
    done = run_cli("replay", "sample", "--hw", "pixel8", "--policy", "dip", *options, code=1)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_all_rules_are_listed():
    listed = run_cli("prefetches").stdout
    assert all(name in listed for name in PREFETCHES.names())
    with pytest.raises(Exception, match="must define guess"):
        Prefetch().guess(None)
