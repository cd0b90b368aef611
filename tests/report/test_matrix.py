"""Several devices in one replay: a matrix of the numbers of single replays."""

from __future__ import annotations

import json
import re

from hwsim.util.units import show_number
from tests.report.test_page import run


def test_a_matrix_of_single_replays(here):
    words = ("--policy", "dip,dip-ca", "--dram", "60%")
    code, out, _ = run("replay", "t.npz", "--hw", "pixel8,oneplus12", "--hw", "iphone16-a18", *words)
    assert code == 0
    for device in ("pixel8", "oneplus12", "iphone16-a18"):
        rates = r"Flash [\d.]+ [GM]B/s \([a-z]+\), DRAM [\d.]+ GB/s \([a-z]+\), budget "
        assert re.search(rf"^{device}: {rates}", out, re.MULTILINE)
    assert "eviction lfu, timing events, overlap none" in out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    for column, device in enumerate(("pixel8", "oneplus12", "iphone16-a18")):
        assert lines["policy"][column] == device
        single = json.loads(
            run("replay", "t.npz", "--hw", device, "--policy", "dense,dip,dip-ca", "--dram", "60%", "--json", "-")[1]
        )
        dense = single["results"][0]["throughput_tok_s"]
        for row in single["results"]:
            speed = row["throughput_tok_s"]
            assert lines[row["provenance"]["policy"]["name"]][3 * column : 3 * column + 2] == [
                show_number(speed),
                f"{speed / dense:.2f}",
            ]


def test_json_holds_all_of_them(here):
    out = run("replay", "t.npz", "--hw", "pixel8,oneplus12", "--policy", "dip,dip-ca", "--json", "-")[1]
    found = [
        (row["provenance"]["device"]["name"], row["provenance"]["policy"]["name"]) for row in json.loads(out)["results"]
    ]
    assert found == [
        ("Google Pixel 8", "dip"),
        ("Google Pixel 8", "dip-ca"),
        *((found[2][0], name) for name in ("dip", "dip-ca")),
    ]
    assert found[2][0] != "Google Pixel 8"


def test_what_all_share_is_told_once(here):
    out = run("replay", "t.npz", "--hw", "pixel8,iphone16-a18", "--policy", "dip", "--dram", "60%")[1]
    assert out.count("The trace is synthetic") == 1


def test_what_goes_with_one_device_only(here):
    assert (
        run("replay", "t.npz", "--hw", "pixel8,pixel8", "--policy", "dip")[2]
        == "hwsim: --hw pixel8,pixel8: must name at least one device, each once\n"
    )
    told = run("replay", "t.npz", "--hw", "pixel8,oneplus12", "--policy", "dip", "--save-cache", "c.npz")[2]
    assert told == "hwsim: --save-cache: holds the caches of one device; name one --hw\n"
