"""Models of a hub: a hub on this machine serves a folder, and what is downloaded gives what the folder gives."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

pytest.importorskip("torch", reason="recording needs the extra `record`")

from hwsim.errors import ModelError
from hwsim.record.extras import libraries
from hwsim.record.hub import download
from hwsim.record.loading import load_tokenizer
from hwsim.record.sources import find_source
from tests.record.conftest import make_model, save

REVISION = "a" * 40
TEMPLATE = "{% for m in messages %}Q: {{ m['content'] }}\nA:{% endfor %}"


class Hub:
    """Serves the folder `folder` as the model ``me/tiny``, and lists the files that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, hub = folder, set[str](), self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                """Say nothing."""

            def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
                self.send_response(code)
                for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": REVISION, **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            def do_GET(self) -> None:
                path = urlparse(self.path).path
                files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
                hashes = {name: hashlib.sha1(file.read_bytes()).hexdigest() for name, file in files.items()}
                name = path.partition("/resolve/")[2].partition("/")[2]
                if path.startswith("/api/models/me/tiny/tree"):
                    tree = [{"type": "file", "path": name, "size": 1, "oid": oid} for name, oid in hashes.items()]
                    self.answer(json.dumps(tree).encode(), Content_Type="application/json")
                elif path.startswith("/api/models/me/tiny"):
                    siblings = [{"rfilename": name} for name in files]
                    about = {"id": "me/tiny", "sha": REVISION, "siblings": siblings, "tags": [], "private": False}
                    self.answer(json.dumps(about).encode(), Content_Type="application/json")
                elif name in files:
                    hub.asked.add(name)
                    self.answer(files[name].read_bytes(), ETag=f'"{hashes[name]}"')
                else:
                    self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without files, which is the only one that huggingface_hub knows."""
    import huggingface_hub

    (tmp_path / "served").mkdir()
    served, real = Hub(tmp_path / "served"), huggingface_hub.snapshot_download

    def here(hub_id: str, **options: Any) -> str:
        return real(hub_id, cache_dir=tmp_path / "cache", endpoint=served.address, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", here)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield served
    served.close()


SMALL = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "additional_chat_templates/tool.jinja", "tokenizer.model", "spiece.model", "qwen.tiktoken", "merges.txt",
    "vocab.txt", "bpe.codes", "special_tokens_map.json",
}  # fmt: skip
NEVER = {
    "consolidated.safetensors", "model.fp16.safetensors", "original/params.json", "original/tokenizer.model",
    "original/consolidated.00.pth", "onnx/model.onnx", "onnx/config.json", "tiny.gguf", "README.md", "figure.png",
    "flax_model.msgpack", "tf_model.h5", "training_args.bin", "fp16/model.safetensors",
}  # fmt: skip
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}


def serve(hub: Hub, names: set[str], **contents: str) -> None:
    for name in names:
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_text(contents.get(name, "{}"))


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ({"model.safetensors", "pytorch_model.bin"}, {"model.safetensors"}),
        (
            {"model.safetensors.index.json", *SHARDS, "model-00001-of-00003.safetensors", "pytorch_model.bin"},
            {"model.safetensors.index.json", *SHARDS},
        ),
        ({"model.safetensors", "model.safetensors.index.json", *SHARDS}, {"model.safetensors", "model.safetensors.index.json"}),
        ({"pytorch_model.bin"}, {"pytorch_model.bin"}),
        ({"pytorch_model.bin.index.json", *SHARDS}, {"pytorch_model.bin.index.json", *SHARDS}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("code", [False, True])
def test_what_is_downloaded(weights: set[str], wanted: set[str], code: bool, hub: Hub) -> None:
    """All small files that a model needs, its code only where it is trusted, and the weights that transformers loads."""
    scripts = {"modeling_tiny.py", "parts/mlp.py"}
    indices = {name: json.dumps(INDEX) for name in weights if name.endswith(".index.json")}
    serve(hub, SMALL | NEVER | weights | scripts, **indices)
    folder = download("tiny", "me/tiny", code=code)
    assert hub.asked == SMALL | wanted | (scripts if code else set())
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == hub.asked
    assert folder.name == REVISION


def test_hub_and_folder_give_the_same(hub: Hub) -> None:
    save(make_model("llama"), hub.folder)
    (hub.folder / "chat_template.jinja").write_text(TEMPLATE)
    talk = [{"role": "user", "content": "Why?"}]
    used = libraries()
    folder, found = find_source(str(hub.folder)), find_source("me/tiny")
    assert found.origin == f"hub me/tiny, revision {REVISION}"
    assert [path.name for path in found.weights] == [path.name for path in folder.weights]
    for source in (folder, found):
        assert load_tokenizer(source, used).apply_chat_template(talk, tokenize=False) == "Q: Why?\nA:"


def test_a_model_on_disk_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    serve(hub, SMALL | {"model.safetensors"})
    folder = download("tiny", "me/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert download("tiny", "me/tiny") == folder


@pytest.mark.parametrize("offline", [False, True])
def test_a_shard_that_is_nowhere(offline: bool, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    index = {"model.safetensors.index.json": json.dumps(INDEX)}
    serve(hub, SMALL | {"model.safetensors.index.json", SHARDS[0]}, **index)
    for now_offline in (False, offline):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", now_offline)
        with pytest.raises(
            ModelError, match=f"^--model tiny: model.safetensors.index.json of me/tiny names {SHARDS[1]}, "
        ):
            download("tiny", "me/tiny")


def test_a_model_that_is_on_disk_in_part(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub, an earlier download that lacks files is no model."""
    import huggingface_hub

    serve(hub, SMALL | {"model.safetensors"})
    for path in download("tiny", "me/tiny").glob("chat_template.jinja"):
        path.unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for hub_id in ("me/tiny", "me/other"):
        with pytest.raises(
            ModelError, match=f"^--model tiny: the files of {hub_id} that it needs are not on this machine "
        ):
            download("tiny", hub_id)


def test_a_model_without_weights(hub: Hub) -> None:
    serve(hub, SMALL)
    with pytest.raises(
        ModelError, match=r"there are no weights that transformers loads, neither model.safetensors nor"
    ):
        download("tiny", "me/tiny")


def test_a_model_that_the_hub_does_not_have(hub: Hub) -> None:
    with pytest.raises(
        ModelError, match=r"^--model huge: the hub has no me/huge, or hides it; check the name, or give"
    ):
        download("huge", "me/huge")


def test_a_disk_that_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*args: Any, **options: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(ModelError, match=r"^--model tiny: me/tiny cannot be downloaded: No space left on device$"):
        download("tiny", "me/tiny")
