"""The text that a model reads, a bundled one or a UTF-8 file, and its first tokens."""

from __future__ import annotations

import codecs
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import SettingError, did_you_mean, one_line

_FOLDER = Path(__file__).parent / "texts"
BUNDLED: dict[str, Path] = {path.stem: path for path in sorted(_FOLDER.glob("*.txt"))}
_MARGIN = 64  # extra tokens to read: where a text is cut, its last tokens may differ


class Text(NamedTuple):
    """A text on disk."""

    name: str  # without its folder: provenance must not depend on where it lies
    path: Path
    sha256: str


def find_text(spec: str) -> Text:
    """The text of a path or of a bundled name; a file takes precedence.

    Raises:
        SettingError: it is neither, or cannot be read.
    """
    path = Path(spec)
    if not path.is_file():
        if spec not in BUNDLED:
            raise SettingError(f"--text {spec}: neither a file nor a bundled text{did_you_mean(spec, BUNDLED)}")
        path = BUNDLED[spec]
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SettingError(f"--text {spec}: cannot be read: {error.strerror or one_line(error)}") from error
    return Text(path.name, path, digest)


def read_windows(text: Text, tokenizer: Any, tokens: int, context: int) -> tuple[np.ndarray, list[int]]:
    """The text's first tokens, in windows that begin as the tokenizer begins a text: with BOS if it has one.

    A long file is read only as far as needed.

    Args:
        text: on disk.
        tokenizer: of the model.
        tokens: number of tokens of all windows, including those that each begins with.
        context: tokens of a window; the last may be shorter.

    Returns:
        int32 ``[tokens]``, and the tokens that each window begins with.

    Raises:
        SettingError: the text is not UTF-8, or too short; a window holds no more than its beginning.
    """
    prefix = _prefix(tokenizer)
    if context <= len(prefix):
        raise SettingError(
            f"--context {context}: each window begins with {len(prefix)} token of the tokenizer's; give more"
        )
    lengths = range(0, tokens, context)
    words_needed, step = tokens - len(lengths) * len(prefix), context - len(prefix)
    words = _plain_tokens(text, tokenizer, words_needed)
    if len(words) < words_needed:
        most = len(words) + -(-len(words) // step) * len(prefix)
        raise SettingError(
            f"--text {text.name}: has {most} tokens, --tokens asks for {tokens}; give a longer text, or --tokens {most}"
        )
    windows = (prefix + words[at : at + step] for at in range(0, len(lengths) * step, step))
    ids = [token for window in windows for token in window][:tokens]
    return np.array(ids, np.int32), prefix


def _prefix(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text: BOS, or none."""
    whole, plain = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (True, False))
    starts = range(len(whole) - len(plain) + 1)
    return whole[: next((at for at in starts if whole[at : at + len(plain)] == plain), 0)]


def _plain_tokens(text: Text, tokenizer: Any, count: int) -> list[int]:
    """The first `count` tokens of a text, without special tokens; fewer if the text is shorter."""
    file_size, size = text.path.stat().st_size, max(2**13, 16 * count)
    while True:
        content, whole = _beginning(text, min(size, file_size))
        ids = list(tokenizer(content, add_special_tokens=False)["input_ids"])
        if whole or len(ids) >= count + _MARGIN:
            break
        size *= 4
    if not ids:
        raise SettingError(f"--text {text.name}: is empty; give a text")
    return ids[:count]


def _beginning(text: Text, size: int) -> tuple[str, bool]:
    """The first `size` bytes as text, and whether that is the whole file."""
    with text.path.open("rb") as file:
        data = file.read(size)
        whole = not file.read(1)
    try:
        # not final: a character split by the cut is left out
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole), whole
    except UnicodeDecodeError as error:
        if b"\0" in data[:4096]:
            raise SettingError(f"--text {text.name}: is no text but a binary file; name a UTF-8 text") from error
        raise SettingError(
            f"--text {text.name}: byte {error.start} is no UTF-8; convert the file: iconv -f LATIN1 -t UTF-8"
        ) from error
