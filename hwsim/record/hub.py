"""Download a model of the Hugging Face hub: what its folder needs for the same results, and nothing else."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

from hwsim.errors import ModelError
from hwsim.record.extras import no_bars, told_as

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whole or in shards, in the order in which transformers looks
_SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", "dict.txt", "*.bpe", "*.codes")
_ELSEWHERE = [f"*/{pattern}" for pattern in _SMALL if pattern != "*.jinja"]  # of chat templates there may be a folder


def download(name: str, hub_id: str, *, code: bool = False) -> Path:
    """The folder of a model of the hub, from the hub's cache on this machine or downloaded.

    Downloaded are configuration, tokenizer with chat templates, and the weights that transformers loads; no other
    weights of the repository, such as those of another format or precision.

    Args:
        name: name of the model, for messages.
        hub_id: id on the hub, ``owner/model``.
        code: whether to download the model's own code, too.

    Raises:
        ModelError: the hub has no such model, or the model cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    ways = f"give a folder that holds {hub_id} with --model FOLDER"
    not_here = (
        f"--model {name}: the files of {hub_id} that it needs are not on this machine and the hub cannot be reached; "
        f"{ways}, or run the command again online"
    )

    def fetch(patterns: list[str], revision: str | None = None) -> Path:
        with nullcontext() if sys.stderr.isatty() else no_bars():
            return Path(
                snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=_ELSEWHERE)
            )

    with told_as(f"--model {name}"):
        try:
            folder = fetch([*_SMALL, _WEIGHTS[0], *(["*.py"] if code else [])])
            for number, file in enumerate(_WEIGHTS):
                if number:  # the first came with the small files
                    fetch([file], folder.name)
                if (folder / file).is_file():
                    return folder
                if (index := folder / f"{file}.index.json").is_file():
                    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                    fetch(shards, folder.name)
                    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
                        raise ModelError(
                            f"--model {name}: {index.name} of {hub_id} names {missing[0]}, which is not on the hub "
                            f"or, where that cannot be reached, not on this machine; {ways}"
                        )
                    return folder
        except GatedRepoError as error:
            raise ModelError(
                f"--model {name}: {hub_id} asks for a licence to be accepted on its hub page and a login "
                f"(hf auth login); or {ways}"
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"--model {name}: the hub has no {hub_id}, or hides it; check the name, or {ways}"
            ) from error
        except (LocalEntryNotFoundError, ConnectionError) as error:
            raise ModelError(not_here) from error
        except OSError as error:
            # the hub's own errors have no such text; those of the disk do
            told = f"--model {name}: {hub_id} cannot be downloaded: {error.strerror}" if error.strerror else not_here
            raise ModelError(told) from error
    raise ModelError(
        f"--model {name}: of {hub_id} there are no weights that transformers loads, neither {' nor '.join(_WEIGHTS)} "
        f"nor an index of one, on the hub or, where that cannot be reached, on this machine; {ways}"
    )
