"""Do quantities read and print exactly, and are wrong ones refused with their rule?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.errors import UnitError
from hwsim.util.units import KINDS, parse, show_number, show_rate, show_size, show_time, size


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("4 GB", "size", 4 * 10**9),
        ("4GiB", "size", 4 * 2**30),
        ("4 KiB", "size", 4096),
        ("0.5 kB", "size", 500),
        ("1.8 GB/s", "rate", 1.8e9),
        ("980 MB/s", "rate", 980e6),
        ("90 us", "time", 90e-6),
        ("90 µs", "time", 90e-6),
        ("56 pJ/B", "energy per byte", 56e-12),
        ("12 TFLOPS", "compute rate", 12e12),
        ("1e3 MB", "size", 10**9),
    ],
)
def test_reads(text, kind, value):
    assert float(parse(text, kind)) == value


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("4", "has no unit"),
        (4, "has no unit"),
        ("4 Gb", "is not a unit of a size"),
        ("4 GB/s", "is not a unit of a size"),
        ("-4 GB", "is negative"),
        ("four GB", "write a number and its unit"),
        ("", "write a number and its unit"),
        (True, "write a number and its unit"),
        (None, "write a number and its unit"),
        ("nan GB", "write a number and its unit"),
        ("1e999 GB", "is not a unit"),
    ],
)
def test_refuses(text, rule):
    if text == "1e999 GB":  # exact arithmetic: a very large number, but a number
        assert parse(text, "size") > 10**900
        return
    with pytest.raises(UnitError, match=rule):
        parse(text, "size")


def test_size_rounds_down_to_whole_bytes():
    assert size("1.0005 kB") == 1000


@given(st.integers(0, 10**12), st.sampled_from(sorted(KINDS["size"])))
def test_whole_sizes_are_exact(number, unit):
    assert parse(f"{number} {unit}", "size") == number * KINDS["size"][unit]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (show_number(0.5), "0.5"),
        (show_number(12.3456), "12.35"),
        (show_number(9999.6), "10,000"),
        (show_number(16_532.0), "16,530"),
        (show_number(1234.4), "1234"),
        (show_number(1e-7), "1e-07"),
        (show_number(float("inf")), "inf"),
        (show_size(0), "0 B"),
        (show_size(288), "288 B"),
        (show_size(999.9), "1.00 kB"),
        (show_size(33_634_368), "33.6 MB"),
        (show_size(5.505e9), "5.50 GB"),
        (show_rate(980e6), "980 MB/s"),
        (show_time(0.0349), "34.9 ms"),
        (show_time(90e-6), "90.0 us"),
    ],
)
def test_shows(shown, text):
    assert shown == text


@pytest.mark.parametrize(
    "text", ["9" * 100_000, "9" * 5000 + "x", "1." + "0" * 5000 + " GB", 10**500, -(10**5000)], ids=list("abcde")
)
def test_numbers_of_hundreds_of_digits_are_refused_at_once(text):
    with pytest.raises(UnitError, match="out of all proportion"):
        parse(text, "size")
