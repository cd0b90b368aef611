"""What ``--json`` writes: whole, alone, the same twice, and what the options asked for."""

import json
from pathlib import Path

import pytest

from tests.cli.run import here, replay, result, run
from tests.conftest import REPOSITORY
from tests.simulation.made import MINE, MRU

__all__ = ["here"]


DECODED = (40 - 6) + 25


KEYS = {
    "format", "version", "provenance", "notes", "tokens", "throughput_tok_s", "latency_s", "ttft_s", "time_s",
    "unit_requests", "unit_hits", "hit_rate", "mlp_density", "flash_bytes", "flash_read_bytes", "dram_bytes",
    "resident_bytes", "kv_cache_bytes", "state_bytes", "looked_up_bytes", "streamed_bytes", "cache_bytes", "budget_bytes", "energy_j", "groups", "events",
    "energy_by_source_j", "power_w", "busy_s", "prefetch",
}  # fmt: skip


GROUP = {
    "layer", "group", "units", "capacity_units", "unit_bytes", "requests", "hits", "flash_bytes", "dram_bytes",
}  # fmt: skip


@pytest.mark.parametrize("policy", ["dense", "dip", "dip-ca", "magnitude", "noisy-oracle"])
def test_json_has_every_key_and_its_sums_agree(here, policy):
    found = result("--dram", "60%", "--per-token", policy=policy)
    assert set(found) == KEYS | {"per_token"}
    assert (found["format"], found["version"], found["tokens"]) == ("hwsim-result", 1, DECODED)
    assert set(found["latency_s"]) == {"mean", "p50", "p95", "p99", "max"}
    assert set(found["time_s"]) == {"total", "resident", "kv_cache", "streamed", "mlp", "attention", "compute"}
    assert set(found["provenance"]) == {"hwsim", "trace", "model", "policy", "eviction", "device", "settings", "seed"}
    assert found["provenance"]["policy"]["name"] == policy
    groups, tokens = found["groups"], found["per_token"]
    assert all(set(group) == GROUP for group in groups)
    assert len(groups) == {"dense": 0, "dip": 6, "dip-ca": 6, "magnitude": 3, "noisy-oracle": 3}[policy]
    for key in ("requests", "hits"):
        assert sum(group[key] for group in groups) == found[f"unit_{key}"] == sum(token[key] for token in tokens)
    assert found["hit_rate"] == (found["unit_hits"] / found["unit_requests"] if groups else None)
    assert len(tokens) == DECODED
    for key in ("flash_bytes", "dram_bytes"):
        assert sum(token[key] for token in tokens) == found[key]
    assert sum(group["flash_bytes"] for group in groups) == found["flash_bytes"] - DECODED * found["streamed_bytes"]
    pinned = found["resident_bytes"] - found["kv_cache_bytes"]
    kv = 144 * (sum(range(7, 41)) + sum(range(1, 26)))  # 3 layers x (key, value) x 2 heads x 12 B, for each entry
    assert sum(group["dram_bytes"] for group in groups) == found["dram_bytes"] - DECODED * pinned - kv
    for group in groups:
        assert group["flash_bytes"] == (group["requests"] - group["hits"]) * group["unit_bytes"]
        assert group["dram_bytes"] == group["hits"] * group["unit_bytes"]
    assert found["throughput_tok_s"] == pytest.approx(DECODED / found["time_s"]["total"])
    assert sum(seconds for part, seconds in found["time_s"].items() if part != "total") == pytest.approx(
        found["time_s"]["total"], rel=1e-9
    )
    assert sum(token["latency_s"] for token in tokens) == pytest.approx(found["time_s"]["total"], rel=1e-9)


def test_json_of_one_policy_is_one_result(here):
    found = result()
    assert found["format"] == "hwsim-result"
    assert "per_token" not in found
    assert found["energy_j"] is None


def test_json_of_several_policies_is_a_list_of_results_in_their_order(here):
    """`hwsim-results`: each is what one policy alone would give; `dense`, which is shown beside them, is left out."""
    found = result(policy="dip-ca,dip")
    assert set(found) == {"format", "version", "results"}
    assert (found["format"], found["version"]) == ("hwsim-results", 1)
    assert [each["provenance"]["policy"]["name"] for each in found["results"]] == ["dip-ca", "dip"]
    assert found["results"][1] == result(policy="dip")
    assert result("--policy", "dip-ca", policy="dip")["results"] == found["results"][::-1]


def test_json_on_standard_output_is_alone_there(here):
    out, err = run(*replay("--json", "-"))
    assert json.loads(out)
    assert out.startswith("{\n")
    assert out.endswith("}\n")
    assert err == ""


def test_json_in_a_file_leaves_the_table(here):
    out, err = run(*replay("--json", "r.json"))
    assert "tokens/s" in out
    assert err == "Result written to r.json\n"
    assert json.loads(Path("r.json").read_text()) == result()
    assert sorted(path.name for path in here.iterdir()) == ["flat.yaml", "r.json", "t.npz"]


def test_the_same_command_gives_the_same_bytes(here):
    texts = [run(*replay("--json", "-", "--policy", "noisy-oracle", "--seed", "7"))[0] for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] != run(*replay("--json", "-", "--policy", "noisy-oracle", "--seed", "8"))[0]


def test_nothing_of_the_machine_is_in_the_result(here):
    text = run(*replay("--json", "-"))[0]
    assert str(here) not in text
    assert str(REPOSITORY) not in text


def test_options_reach_the_run(here):
    found = result(
        "--density", "0.4", "--set", "gamma=0.5", "--eviction", "lru", "--dram", "1 MB", "--kv-tokens", "100",
        "--bits", "mlp=4.5,kv_cache=4", "--timing", "closed-form", "--overlap", "group", "--seed", "3", policy="dip-ca",
    )["provenance"]  # fmt: skip
    assert found["policy"]["parameters"] == {
        "density": 0.4, "keep_input": None, "gamma": 0.5, "fixed_top_n": 0, "warm_up": False, "alpha_blend": False, "weighted": False,
    }  # fmt: skip
    assert (found["eviction"]["name"], found["eviction"]["parameters"]) == ("lru", {})
    assert found["settings"] == {
        "dram_budget_bytes": 10**6,
        "kv_tokens": 100,
        "bits": {"mlp": 4.5, "attention": 4.0, "lm_head": 4.0, "kv_cache": 4.0, "predictor": 4.0, "adapter": 16.0},
        "timing": "closed-form",
        "overlap": "group",
        "admission": "always",
        "pinned": None,
        "warm": None,
        "cache_scope": "matrix",
        "cache_shares": "equal",
        "block": 1,
        "layout": None,
    }
    assert found["seed"] == 3
    assert found["device"]["dram"] == {"budget": 4 * 10**9, "bandwidth": 60e9}


def test_defaults_are_those_of_the_design(here):
    found = result(policy="dip-ca")["provenance"]
    assert (found["policy"]["parameters"]["density"], found["policy"]["parameters"]["gamma"]) == (0.5, 0.2)
    assert (found["eviction"]["name"], found["seed"]) == ("lfu", 0)
    assert (found["settings"]["timing"], found["settings"]["overlap"]) == ("events", "none")
    bits = {"mlp": 4, "attention": 4, "lm_head": 4, "kv_cache": 8, "predictor": 4, "adapter": 16}
    assert found["settings"]["bits"] == bits
    assert found["settings"]["dram_budget_bytes"] == 4 * 10**9


def test_closed_form_and_events_agree(here):
    both = [result("--dram", "60%", "--timing", timing)["time_s"] for timing in ("events", "closed-form")]
    assert both[0] == pytest.approx(both[1], rel=1e-9)


def test_parameters_for_one_of_several(here):
    found = result("--set", "dip.density=0.3", "--set", "gamma=0.7", policy="dip,dip-ca")["results"]
    assert [each["provenance"]["policy"]["parameters"]["density"] for each in found] == [0.3, 0.5]
    assert found[1]["provenance"]["policy"]["parameters"]["gamma"] == 0.7


def test_plug_ins_by_path(here):
    Path("mine.py").write_text(MINE)
    Path("mru.py").write_text(MRU)
    found = result("--eviction", "mru.py", policy="mine.py")
    policy = found["provenance"]["policy"]
    assert (policy["name"], policy["parameters"]) == ("mine", {"keep": 0.5})
    assert found["provenance"]["eviction"]["name"] == "mru"
