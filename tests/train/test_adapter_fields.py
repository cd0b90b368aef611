"""Fields of peft's LoraConfig: each is applied or refused; and the lock of an unfinished adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("peft", reason="training needs the extra `train`")

from hwsim.closed_loop.carried import carry
from hwsim.errors import OutputError, SettingError
from hwsim.model.lora import read_adapter
from hwsim.model.shape import ModelShape
from hwsim.train.adapterfile import Partial, partial_of
from tests.record.conftest import loaded, make_model

SHAPE = ModelShape(
    name="m", num_hidden_layers=3, hidden_size=32, intermediate_size=88, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, vocab_size=400, tie_word_embeddings=False, hidden_act="silu", gated=True,
)  # fmt: skip


def adapter(folder: Path, **fields: Any) -> Any:
    """Save a random adapter with some fields of its configuration; returns peft's model with it."""
    import peft
    import torch

    config = peft.LoraConfig(**{"r": 4, "target_modules": ["up_proj", "q_proj"], "task_type": "CAUSAL_LM"} | fields)
    model = peft.get_peft_model(make_model("llama"), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": 32},
        {"use_rslora": True, "lora_alpha": 3},
        {"alpha_pattern": {"q_proj": 64}},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"exclude_modules": ["model.layers.0.mlp.up_proj"]},
        {"fan_in_fan_out": True},
        {"lora_dropout": 0.5},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"target_modules": "all-linear"},
    ],
)
def test_fields_that_are_applied(fields: dict[str, Any], tmp_path: Path) -> None:
    """The model computes what peft's own computes, and is itself again without the adapter."""
    import torch

    ids = torch.arange(30)[None]
    theirs = adapter(tmp_path / "a", **fields)
    assert read_adapter(tmp_path / "a", SHAPE).rank == 4
    model = make_model("llama")
    carried = carry(loaded(model), tmp_path / "a", "m")
    assert carried is not None
    with torch.no_grad():
        dense = make_model("llama")(ids).logits
        torch.testing.assert_close(carried.model(ids).logits, dense)
        with carried:
            torch.testing.assert_close(carried.model(ids).logits, theirs(ids).logits)
            assert not torch.allclose(carried.model(ids).logits, dense)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "all"),
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("megatron_config", {"a": 1}),
        ("alora_invocation_tokens", [5]),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"a": 1}),
        ("use_bdlora", {"nblocks": 2}),
        ("velora_config", {"num_groups": 2}),
        ("monteclora_config", {"a": 1}),
        ("a_field_of_tomorrow", 3),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", [1]),
        ("task_type", "SEQ_CLS"),
    ],
)
def test_fields_that_are_refused(field: str, value: Any, tmp_path: Path) -> None:
    adapter(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    with pytest.raises(SettingError, match=rf"adapter_config.json has {field}") as caught:
        read_adapter(tmp_path, SHAPE)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_floats(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(SettingError, match=r"lora_A.weight has the type I8; hwsim knows float weights only"):
        read_adapter(tmp_path, SHAPE)


# ---------------------------------------------------------------------- the folder during training


def test_overwrite_deletes_nothing_of_a_training_that_runs(tmp_path: Path) -> None:
    """The old training is deleted under its lock: another process may be at it."""
    folder = tmp_path / "a"
    with Partial(folder, {"format": "hwsim-lora", "rank": 4}, overwrite=False) as running:
        (running.path / "state.pt").write_bytes(b"state")
        with pytest.raises(OutputError, match="another process is training there"):
            Partial(folder, {"format": "hwsim-lora", "rank": 8}, overwrite=True).__enter__()
        assert (running.path / "state.pt").read_bytes() == b"state"
        assert json.loads((running.path / "hwsim.json").read_text())["rank"] == 4
    with pytest.raises(OutputError, match="rank 4, now 8"):
        Partial(folder, {"format": "hwsim-lora", "rank": 8}, overwrite=False)
    (partial_of(folder) / "whole").mkdir()
    with Partial(folder, {"format": "hwsim-lora", "rank": 8}, overwrite=True) as anew:
        assert [path.name for path in anew.path.iterdir()] == ["hwsim.json"]
        assert json.loads((anew.path / "hwsim.json").read_text())["rank"] == 8
    assert not partial_of(folder).exists()


def test_a_training_that_begins_while_another_is_made_ready(tmp_path: Path) -> None:
    """Its settings are compared again under the lock."""
    folder = tmp_path / "a"
    late = Partial(folder, {"format": "hwsim-lora", "rank": 8}, overwrite=False)
    with Partial(folder, {"format": "hwsim-lora", "rank": 4}, overwrite=False) as first:
        (first.path / "state.pt").write_bytes(b"state")
    with pytest.raises(OutputError, match="rank 4, now 8"):
        late.__enter__()
    assert (partial_of(folder) / "state.pt").read_bytes() == b"state"
    with Partial(folder, {"format": "hwsim-lora", "rank": 4}, overwrite=False):
        pass  # the refused one holds no lock
