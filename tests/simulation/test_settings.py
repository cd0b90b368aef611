"""A value of a wrong type is one line with the rule, and the rule says all that is taken."""

import pytest

from hwsim.errors import SettingError
from hwsim.simulation.settings import Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": None}, "setting ignore=None: must be text or Sequence[str]"),
        ({"ignore": 5}, "setting ignore=5: must be text or Sequence[str]"),
        ({"lora": 5}, "setting lora=5: must be text, or None"),
        ({"merge": 1.5}, "setting merge=1.5: must be text or int, or None"),
        ({"merge": False}, "setting merge=False: must be text or int, or None"),
        ({"merge": 4096, "gap": True}, "setting gap=True: must be text or int, or None"),
        ({"pin": 5}, "setting pin=5: must be text or UnitSets, or None"),
        ({"layout": 5}, "setting layout=5: must be text or Layout, or None"),
        ({"cache_shares": 5}, "setting cache_shares=5: must be text or Path or Shares, or None"),
        ({"bits": {}}, "setting bits={}: must be text or hwsim.model.Bits"),
        ({"prefetch": (1, 2), "overlap": "prefetch"}, "setting prefetch=(1, 2): must be text or Path or Prefetch, or None"),
        (
            {"prefetch": "last-token", "overlap": "prefetch", "prefetch_parameters": 5},
            "setting prefetch_parameters=5: must be names and values, or None",
        ),
        ({"kv_window": 10**30}, f"setting kv_window={10**30}: must be a whole number from 1 to 1000000000, or None"),
        ({"block": 10**9}, "setting block=1000000000: must be a whole number from 1 to 100000000"),
    ],
)  # fmt: skip
def test_wrong_values(options, message):
    with pytest.raises(SettingError) as caught:
        Settings(**options)
    assert str(caught.value) == message
