"""A model, a device and masks that are small enough for a pencil."""

import numpy as np

from hwsim.device.profile import Profile
from hwsim.model.shape import Bits, ModelShape
from hwsim.policy import Group, Policy
from hwsim.simulation.plugins import EVICTIONS
from hwsim.simulation.settings import Settings
from hwsim.trace import Sequence, Trace
from tests.conftest import write_trace
from tests.runs import replay

TOY = ModelShape(
    name="toy",
    num_hidden_layers=2,
    hidden_size=4,
    intermediate_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=2,
    vocab_size=16,
)


# At 8 bits a weight is a byte. A layer's attention: q 4x4, k 2x4, v 2x4, o 4x4 = 48 B; LM head 16x4 = 64 B; so 160 B are
# resident. A KV entry is 2 layers x (2 keys + 2 values) = 8 B. A unit of `input` is a column of gate and one of up,
# 2 x 8 B; a unit of `down` is a column of down, 4 B. With 96 B for caches each of the 6 matrices gets 16 B:
# `input` holds 32 // 16 = 2 units, `down` 16 // 4 = 4.
BITS = Bits(mlp=8, attention=8, lm_head=8, kv_cache=8, predictor=8)


RESIDENT, KV_ENTRY, INPUT, DOWN = 160, 8, 16, 4


SCRIPT = {"input": [[0, 1], [1, 2], [0, 1]], "down": [[0, 1, 2], [2, 3], [0]]}


# LRU by hand, the same in both layers: (units asked for, of them hits)
#   input: {0 1} miss both; {1 2} hit 1, 0 leaves; {0 1} hit 1
#   down:  {0 1 2} miss all; {2 3} hit 2, nobody leaves; {0} hit 0
INPUT_USE, DOWN_USE = [(2, 0), (2, 1), (2, 1)], [(3, 0), (2, 1), (1, 1)]


class Scripted(Policy):
    """Asks for what the script says."""

    script: dict[str, list[list[int]]] = SCRIPT

    def groups(self, model):
        return [
            Group("input", "hidden", ["gate.column", "up.column"]),
            Group("down", "neuron", ["down.column"]),
        ]

    def select(self, ctx):
        mask = np.zeros(ctx.units, bool)
        mask[self.script[ctx.group.name][ctx.token]] = True
        return mask


def device_of(sections):
    """100 B/s DRAM, 10 B/s Flash, and what is given besides."""
    flat = {
        "name": "toy",
        "dram": {"budget": "1 kB", "bandwidth": "100 B/s"},
        "flash": {"read_bandwidth": "10 B/s"} | sections.get("flash", {}),
    }
    return Profile.model_validate(sections | flat)


THREE = (Sequence(tokens=3),)


def toy(tmp_path, sequences=THREE, *, policy=None, device=None, budget=RESIDENT + 3 * KV_ENTRY + 96, **more):
    path = write_trace(tmp_path / "toy.npz", TOY, list(sequences), ("input",))
    with Trace(path) as trace:
        chosen = Settings(dram=budget, bits=BITS, per_token=True, **more)
        return replay(trace, device or device_of({}), policy or Scripted(), EVICTIONS.make("lru")[1], chosen)


def times(result):
    return [token.latency_s for token in result.per_token]
