# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Which policy, which density, which size of DRAM?
#
# On the recorded trace that comes with hwsim: 78 tokens of SmolLM2-135M-Instruct.

# %%
from pathlib import Path

import hwsim

trace = hwsim.load("sample")
print(trace.header.model.name, trace.header.tokens, "tokens")

# %% [markdown]
# Three policies at half the density, with DRAM for half of the weights. A notebook shows this as a table.

# %%
found = hwsim.replay(trace, "pixel8", ["dense", "dip", "dip-ca"], density=0.5, dram="50%")
Path("policies.html").write_text(found._repr_html_())
found  # noqa: B018

# %% [markdown]
# The density that a speed needs: DIP-CA with the paper's gamma.

# %%
rows = []
for dram in ("40%", "60%"):
    for density in (0.4, 0.6, 0.8):
        result = hwsim.replay(trace, "pixel8", "dip-ca", density=density, dram=dram)
        rows.append((dram, density, result.throughput_tok_s, result.hit_rate))
        print(
            f"DRAM {dram}, density {density}: {result.throughput_tok_s:6.1f} tokens/s, hit rate {result.hit_rate:.1%}"
        )

# %% [markdown]
# Where the hits are, by layer.

# %%
groups = hwsim.replay(trace, "pixel8", "dip-ca", density=0.5, dram="60%").to_frame("groups")
groups["hit_rate"] = groups.hits / groups.requests
print(groups.pivot_table(index="layer", columns="group", values="hit_rate").round(3).head())
