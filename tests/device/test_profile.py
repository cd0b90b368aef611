"""Do hardware profiles read exactly, say where every number comes from, and is each mistake told in one line?"""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hwsim.cli.app import app
from hwsim.device.profile import Profile, find_profile, known_profiles, load_profile
from hwsim.errors import ProfileError
from hwsim.util.files import data_folder
from tests.conftest import REPOSITORY

NAMES = sorted(path.stem for path in (REPOSITORY / "hw_profiles").glob("*.yaml"))
WEAKEST_FIRST = ["assumed", "derived", "vendor", "measured"]
LEAST = """\
name: A phone
dram:
  budget: 4 GB
  bandwidth: 60 GB/s
flash:
  read_bandwidth: 1 GB/s
"""


def numbers(node, at=""):
    """Every quantity of a file: (section's path, key)."""
    for key, value in node.items():
        if isinstance(value, dict) and key not in ("read", "engines", "rate"):
            yield from numbers(value, f"{at}{key}.")
        elif key not in ("source", "confidence", "note", "name", "kind"):
            yield at.rstrip("."), key


# ---------------------------------------------------------------------- what comes with hwsim


def test_there_are_profiles():
    assert {"pixel8", "iphone16-a18", "oneplus12", "oneplus15r"} <= set(NAMES)
    assert list(known_profiles()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source_and_a_confidence(name):
    """The section that holds it says both; a table is a section of its own."""
    data = yaml.safe_load((REPOSITORY / "hw_profiles" / f"{name}.yaml").read_text())
    found = list(numbers(data))
    assert ("dram", "bandwidth") in found
    assert ("flash", "read_bandwidth") in found
    for section, key in found:
        assert section, f"{key} stands outside of any section"
        holder = data
        for part in section.split("."):
            holder = holder[part]
        assert len(holder.get("source", "")) > 10, f"{section}.{key}"
        assert holder.get("confidence") in WEAKEST_FIRST, f"{section}.{key}"


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_no_surer_than_its_weakest_section(name):
    profile = load_profile(name)
    sections = [profile.dram, profile.flash, *filter(None, (profile.flash.table, profile.compute))]
    # energy is left out: it does not touch the time, and its sources are borrowed everywhere
    weakest = min((section.confidence for section in sections), key=WEAKEST_FIRST.index)
    assert profile.confidence == weakest


@pytest.mark.parametrize("name", NAMES)
def test_a_section_that_assumes_says_so(name):
    """A source that borrows, assumes or halves a number cannot be called measured."""
    data = yaml.safe_load((REPOSITORY / "hw_profiles" / f"{name}.yaml").read_text())
    for section in (data["dram"], data["flash"], data["flash"].get("table", {}), data.get("energy", {})):
        if re.search(r"borrowed|assumed|half of", section.get("source", "")):
            assert section["confidence"] in ("assumed", "derived"), section


@pytest.mark.parametrize(
    ("name", "budget", "dram", "peak", "flash", "energy"),
    [
        ("pixel8", 4e9, 51.2e9, 68.3e9, 980e6, (56e-12, 0.42e-9)),
        ("iphone16-a18", 4e9, 60e9, None, 1e9, None),
        ("oneplus12", 19e9, 59.6e9, 76.8e9, 3.5e9, (56e-12, 0.42e-9)),
        ("oneplus15r", 3.36e9, 59.7e9, None, 2.806e9, (56e-12, 0.42e-9)),
    ],
)
def test_facts(name, budget, dram, peak, flash, energy):
    """docs/explanation/devices.md gives the sources of these."""
    profile = load_profile(name)
    assert (profile.dram.budget, profile.dram.bandwidth, profile.dram.peak_bandwidth) == (budget, dram, peak)
    assert profile.flash.read_bandwidth == flash
    assert energy == (profile.energy and pytest.approx((profile.energy.dram_read, profile.energy.flash_read)))


def test_facts_of_the_paper():
    """The device of arXiv 2412.01380, flat; what the paper gives is a setting there, and the budget is ours."""
    profile = load_profile("iphone16-a18")
    assert (profile.flash.table, profile.flash.latency, profile.compute) == (None, None, None)
    assert profile.dram.confidence == "assumed"


@pytest.mark.parametrize(
    ("size", "row"),
    [
        (4096, (43.4, 86.4, 177.6, 314.8)),
        (65536, (444, 856, 1345, 1962)),
        (2**20, (1549, 2530, 2702, 2806)),
        (4 * 2**20, (2114, 2623, 2609, 2508)),
    ],
)
def test_facts_of_a_measured_table(size, row):
    profile = load_profile("oneplus15r")
    assert profile.flash.queue_depth == 8
    for depth, value in zip((1, 2, 4, 8), row, strict=True):
        assert profile.flash.table.bandwidth(size, depth) == pytest.approx(value * 1e6, rel=1e-12)


# ---------------------------------------------------------------------- finding


@pytest.mark.parametrize("name", ["pixel8", "pixel8.yaml", "pixel8.yml"])
def test_a_name_with_or_without_yaml(name):
    assert load_profile(name).name == "Google Pixel 8"


def test_a_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pixel8.yaml").write_text(LEAST)
    assert load_profile("pixel8.yaml").name == "A phone"
    assert load_profile("pixel8").name == "Google Pixel 8"  # no file is called that
    assert load_profile(tmp_path / "pixel8.yaml").name == "A phone"


def test_a_folder_of_that_name_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pixel8").mkdir()
    assert find_profile("pixel8") == known_profiles()["pixel8"]


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(ProfileError, match=r"device 'pixel9' is neither a file nor .* did you mean 'pixel8'\? Known: "):
        load_profile("pixel9")


def test_the_least_that_must_work(tmp_path):
    path = tmp_path / "least.yaml"
    path.write_text(LEAST + "source: arXiv 2412.01380, appendix A\n")
    profile = load_profile(path)
    assert profile == Profile.model_validate(
        {
            "name": "A phone",
            "dram": {"budget": "4000000 kB", "bandwidth": "60e9 B/s"},
            "flash": {"read_bandwidth": "1000 MB/s"},
            "source": "arXiv 2412.01380, appendix A",
        }
    )


def test_sections_have_the_source_and_confidence_of_the_profile_unless_they_name_their_own():
    table = {"unit": "MB/s", "queue_depth": [1], "read": {"4 KiB": [40]}}
    profile = Profile.model_validate(
        {
            "name": "A phone",
            "source": "mine",
            "confidence": "measured",
            "note": "not handed down",
            "dram": {"budget": "4 GB", "bandwidth": "60 GB/s", "confidence": "assumed"},
            "flash": {"read_bandwidth": "1 GB/s", "queue_depth": 1, "source": "fio", "table": table},
            "compute": {"rate": "2 TOPS"},
            "energy": {"dram_read": "56 pJ/B", "flash_read": "1 nJ/B", "source": "paper", "confidence": "vendor"},
        }
    )
    assert profile.flash.table is not None
    sections = [profile.dram, profile.flash, profile.flash.table, profile.compute, profile.energy]
    assert [(each.source, each.confidence) for each in sections] == [
        ("mine", "assumed"),
        ("fio", "measured"),
        ("fio", "measured"),  # those of the section that it stands in
        ("mine", "measured"),
        ("paper", "vendor"),
    ]
    assert {each.note for each in sections} == {None}


def test_the_profiles_confidence_is_shown(tmp_path):
    path = tmp_path / "phone.yaml"
    path.write_text(LEAST + "source: a stopwatch\nconfidence: derived\n")
    listed = CliRunner().invoke(app, ["devices", str(path)])
    assert listed.exit_code == 0
    assert listed.output.count("derived") == 2  # DRAM and Flash
    assert "a stopwatch" in listed.output
    sample = data_folder("traces") / "smollm2-135m-sample.npz"
    replayed = CliRunner().invoke(app, ["replay", str(sample), "--hw", str(path), "--policy", "dense"])
    assert replayed.output.count("(derived)") == 2


# ---------------------------------------------------------------------- every mistake is one line


TABLE = """\
  queue_depth: 4
  table:
    unit: MB/s
    queue_depth: [1, 4]
    read:
      4 KiB: [40, 160]
      64 KiB: [400, 1280]
"""

BAD = {
    # the file is no profile at all
    "empty": ("", r": is no hardware profile; it needs at least name, dram and flash"),
    "list": ("- 4 GB\n", r": is no hardware profile"),
    "text": ("hello", r": is no hardware profile"),
    "not YAML": ("name: [1, 2\n", r": line 2: expected ',' or ']'"),
    "tab": ("name: x\n\tdram: 1\n", r": line 2: found character"),
    "binary": (b"\x00\x01\x93NUMPY", r": is not YAML"),
    "latin-1": ("name: f\xfcnf\n".encode("latin-1"), r": is not YAML"),
    "deep": ("[" * 20_000, r": is not YAML"),
    "python object": ("name: !!python/object/apply:os.system [ls]\n", r": line 1: could not determine a constructor"),
    "two documents": (LEAST + "---\n" + LEAST, r": line 7: "),
    "huge": ("# " + "x" * 2**20, r": is larger than 1 MiB; this is no hardware profile"),
    "alias": (LEAST.replace("4 GB", "&b 4 GB") + "note: *b\n", r": line 7: aliases \(\*name\) are not allowed"),
    "duplicate key": (LEAST + "dram:\n  budget: 5 GB\n", r": line 7: key 'dram' is given twice"),
    "duplicate inner key": (LEAST + "  read_bandwidth: 2 GB/s\n", r": line 7: key 'read_bandwidth' is given twice"),
    "number as key": (LEAST + "7: 8\n", r": 7 is not a known key"),
    # a field is missing or unknown
    "no name": (LEAST.replace("name: A phone\n", ""), r": name is missing"),
    "no flash": (LEAST.partition("flash")[0], r": flash is missing"),
    "no budget": (LEAST.replace("  budget: 4 GB\n", ""), r": dram\.budget is missing"),
    "empty section": (LEAST.partition("  read")[0], r": flash: must be a section of fields"),
    "section as text": (LEAST.partition("flash")[0] + "flash: fast\n", r": flash: must be a section of fields"),
    "unknown key": (LEAST + "ram: 4\n", r": ram is not a known key; did you mean 'dram'\? Known: compute, confidence"),
    "unknown inner key": (
        LEAST + "  latancy: 9 us\n",
        r": flash\.latancy is not a known key; did you mean 'latency'\? Known: .*queue_depth",
    ),
    "unknown key in the table": (
        LEAST + TABLE + "    units: MB/s\n",
        r": flash\.table\.units is not a known key; did you mean 'unit'\?",
    ),
    "unknown confidence": (LEAST + "confidence: sure\n", r": confidence: must be 'measured', 'vendor'.* \(got 'sure'\)"),
    # a quantity is wrong
    "no unit": (LEAST.replace("4 GB", "4"), r": dram\.budget: 4 has no unit; a size needs one of B, kB.*such as '4 GB'"),
    "negative": (LEAST.replace("60 GB/s", "-60 GB/s"), r": dram\.bandwidth: '-60 GB/s' is negative; a rate must not be"),
    "zero": (LEAST.replace("1 GB/s", "0 GB/s"), r": flash\.read_bandwidth: '0 GB/s' is zero; a rate must be more here"),
    "other kind": (LEAST.replace("60 GB/s", "60 GB"), r": dram\.bandwidth: '60 GB': 'GB' is not a unit of a rate; use"),
    "bits": (LEAST.replace("60 GB/s", "60 Gb/s"), r": dram\.bandwidth: '60 Gb/s': 'Gb/s' is not a unit of a rate"),
    "no number": (LEAST.replace("60 GB/s", "fast"), r": dram\.bandwidth: 'fast' is not a rate; write a number and its"),
    "list as quantity": (LEAST.replace("60 GB/s", "[60]"), r": dram\.bandwidth: \[60\] is not a rate"),
    "null": (LEAST.replace("60 GB/s", ""), r": dram\.bandwidth: None is not a rate"),
    "date": (LEAST.replace("60 GB/s", "2024-01-01"), r": dram\.bandwidth: .* is not a rate"),
    "part of a byte": (LEAST.replace("4 GB", "0.3 B"), r": dram\.budget: '0.3 B' is not a whole number of bytes"),
    "beyond all sense": (LEAST.replace("60 GB/s", "1e999 GB/s"), r": dram\.bandwidth: '1e999 GB/s' is out of all proportion"),
    "below all sense": (LEAST.replace("1 GB/s", "1e-400 B/s"), r": flash\.read_bandwidth: '1e-400 B/s' is out of all prop"),
    "too much DRAM": (LEAST.replace("4 GB", "1e999 GB"), r": dram\.budget: '1e999 GB' is out of all proportion"),
    "long text": (LEAST.replace("60 GB/s", "x" * 100_000), r": dram\.bandwidth: 'xxx[^\n]{0,300}$"),
    "infinite": (LEAST.replace("60 GB/s", ".inf"), r": dram\.bandwidth: inf is not a rate"),
    # fields contradict each other
    "above its peak": (LEAST.replace("flash", "  peak_bandwidth: 50 GB/s\nflash"), r": dram: bandwidth is above peak_bandwidth"),
    "queue depth of 0": (LEAST + "  queue_depth: 0\n", r": flash\.queue_depth: must be above 0 \(got 0\)"),
    "queue depth of yes": (LEAST + "  queue_depth: yes\n", r": flash\.queue_depth: "),
    "half a queue": (LEAST + "  queue_depth: 1.5\n", r": flash\.queue_depth: .* \(got 1\.5\)"),
    # the table
    "rows of wrong length": (
        LEAST + TABLE.replace("[400, 1280]", "[400]"),
        r": flash\.table: read: 65536 B has 1 bandwidths, queue_depth has 2",
    ),
    "unsorted sizes": (
        LEAST + TABLE.replace(" 4 KiB", " 1 MiB"),
        r": flash\.table: read: request sizes must rise",
    ),
    "one size twice": (LEAST + TABLE.replace("64 KiB", "4096 B"), r": flash\.table\.read: 4096 B is given twice"),
    "unsorted depths": (LEAST + TABLE.replace("[1, 4]", "[4, 1]"), r": flash\.table: queue_depth \[4, 1\] must rise"),
    "no rows": (LEAST + TABLE.partition("      4")[0], r": flash\.table\.read: must map request sizes to rows"),
    "reads of nothing": (LEAST + TABLE.replace(" 4 KiB", " 0 B"), r": flash\.table: read: request sizes must rise, from at least 1 B"),
    "size without unit": (LEAST + TABLE.replace("4 KiB", "4096"), r": flash\.table\.read: 4096 has no unit; a size needs"),
    "zero in the table": (LEAST + TABLE.replace("[40,", "[0,"), r": flash\.table\.read\.4096\.0: must be above"),
    "infinity in the table": (LEAST + TABLE.replace("[40,", "[.inf,"), r": flash\.table\.read\.4096\.0: .*finite number"),
    "NaN in the table": (LEAST + TABLE.replace("[40,", "[.nan,"), r": flash\.table\.read\.4096\.0: .*finite number"),
    "text in the table": (LEAST + TABLE.replace("[40,", "[fast,"), r": flash\.table\.read\.4096\.0: .*\(got 'fast'\)"),
    "unit of another kind": (LEAST + TABLE.replace("MB/s", "MB"), r": flash\.table\.unit: '1 MB': 'MB' is not a unit of a"),
    "table and latency": (LEAST + "  latency: 90 us\n" + TABLE, r": flash: latency is part of a measured table; give one"),
    "table without depth": (LEAST + TABLE.partition("\n")[2], r": flash: queue_depth is needed beside a table"),
    # the other sections
    "energy of another kind": (LEAST + "energy:\n  dram_read: 56 pJ\n  flash_read: 1 nJ/B\n", r": energy\.dram_read: '56 pJ'"),
    "half an energy": (LEAST + "energy:\n  dram_read: 56 pJ/B\n", r": energy\.flash_read is missing"),
    "unknown key of energy": (
        LEAST + "energy:\n  dram_read: 56 pJ/B\n  flash_read: 1 nJ/B\n  flash_write: 1 nJ/B\n",
        r": energy\.flash_write is not a known key; did you mean 'flash_read'\?",
    ),
    "compute rate of 0": (LEAST + "compute:\n  rate: 0 TFLOPS\n", r": compute\.rate: '0 TFLOPS' is zero"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "rule"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line_with_file_field_value_and_rule(tmp_path, text, rule):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ProfileError) as found:
        load_profile(path)
    message = str(found.value)
    assert message.startswith(f"{path}: ")
    assert re.search(rule, message), message
    assert "\n" not in message
    assert len(message) < 600


def test_a_table_that_is_right_is_read(tmp_path):
    """So that each of the mistakes above is the only one in its file."""
    path = tmp_path / "good.yaml"
    path.write_text(LEAST + TABLE)
    assert load_profile(path).flash.table.read == {4096: (40, 160), 65536: (400, 1280)}


def test_a_bandwidth_at_its_peak_and_a_read_of_one_byte_are_possible(tmp_path):
    path = tmp_path / "edge.yaml"
    path.write_text(LEAST.replace("flash", "  peak_bandwidth: 60 GB/s\nflash") + TABLE.replace(" 4 KiB", " 1 B"))
    profile = load_profile(path)
    assert profile.dram.peak_bandwidth == profile.dram.bandwidth
    assert min(profile.flash.table.read) == 1


def test_a_missing_file():
    with pytest.raises(ProfileError, match=r"device 'no/such\.yaml' is neither a file nor a known profile"):
        load_profile("no/such.yaml")


def test_a_folder(tmp_path):
    with pytest.raises(ProfileError, match="is neither a file nor a known profile"):
        load_profile(tmp_path)


def test_fewer_reads_than_were_measured_do_not_gain() -> None:
    """A table that begins at depth 32: one read alone takes as long as 32 together."""
    profile = load_profile("oneplus12")
    table = profile.flash.table
    assert table is not None
    assert table.bandwidth(4096, 32) == pytest.approx(1000e6)
    assert 4096 / table.bandwidth(4096, 1) == pytest.approx(32 * 4096 / 1000e6)
    assert table.best(32) == pytest.approx(3500e6)
    assert load_profile("oneplus15r").flash.table.best(8) == pytest.approx(2806e6)  # 1 MiB, more than 4 MiB's 2508
