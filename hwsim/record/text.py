"""The text that a model reads, a bundled one or a file, and its first tokens."""

from __future__ import annotations

import codecs
import hashlib
import os
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwsim.errors import SettingError, did_you_mean, one_line
from hwsim.util.units import printable

_FOLDER = Path(__file__).parent / "texts"
BUNDLED: dict[str, Path] = {path.stem: path for path in sorted(_FOLDER.glob("*.txt"))}
_MARGIN = 16  # words: where a text is cut, its last words may be other words than in the whole text
_LOOKED_AT = 2**12  # bytes that a guess of the encoding is made from
_MARKS = {  # UTF-32's begins with UTF-16's, so it comes first
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_WITHOUT_MARK = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")


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
    return Text(path.name, path, _digest(path, spec))


def _digest(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SettingError(f"--text {name}: cannot be read: {error.strerror or one_line(error)}") from error


def read_windows(text: Text, tokenizer: Any, tokens: int, context: int) -> tuple[np.ndarray, list[int]]:
    """The text's first tokens, in windows that begin as the tokenizer begins a text: with BOS if it has one.

    The tokens are those of the whole text, but a long file is read only as far as needed. A text that spells a special
    token of the tokenizer, such as ``<|endoftext|>``, holds that token there, as transformers reads it. Ends of lines
    are kept as they are.

    Args:
        text: on disk, in UTF-8; a byte-order mark is left out.
        tokenizer: of the model.
        tokens: number of tokens of all windows, including those that each begins with.
        context: tokens of a window; the last may be shorter.

    Returns:
        int32 ``[tokens]``, and the tokens that each window begins with.

    Raises:
        SettingError: the text is not UTF-8, holds NUL characters, is too short, or has changed since `find_text`; a
            window holds no more than its beginning.
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
    """The first `count` tokens of a text, without those that a tokenizer adds; fewer if the text is shorter."""
    size = max(2**13, 16 * count)
    while True:
        content, whole = _beginning(text, size)
        ids = _encode(tokenizer, content) if whole else _settled(tokenizer, content, count)
        if whole or len(ids) >= count:
            break
        size *= 4
    if _digest(text.path, text.name) != text.sha256:  # provenance would name another text than was read
        raise SettingError(f"--text {text.name}: changed while it was read; run the command again when it is complete")
    if not ids:
        raise SettingError(f"--text {text.name}: is empty; give a text")
    return ids[:count]


def _encode(tokenizer: Any, content: str) -> list[int]:
    return list(tokenizer(content, add_special_tokens=False)["input_ids"])


def _settled(tokenizer: Any, content: str, count: int) -> list[int]:
    """Tokens that any text has that begins with `content`: at least `count`, or as many as are certain.

    A tokenizer that cuts a text into words makes tokens of each word by itself, so only the last words are uncertain.
    """
    encoded = tokenizer(content, add_special_tokens=False)
    ids = list(encoded["input_ids"])
    words = encoded.word_ids() if getattr(encoded, "is_fast", False) else []
    if words:
        certain = list(takewhile(lambda word: word is not None and word + _MARGIN <= (words[-1] or 0), words))
        if len(certain) >= count:
            return ids[: len(certain)]
    if len(ids) < count:
        return []
    window = max((len(token) for token in tokenizer.get_vocab()), default=0) + _MARGIN
    enough = len(content) * (count + _MARGIN) // len(ids) + 2 * window
    for end in {min(enough, len(content)): None, len(content): None}:
        common = _common(tokenizer, content, end, window, count)
        if len(common) >= count:
            return common
    return []


def _common(tokenizer: Any, content: str, end: int, window: int, count: int) -> list[int]:
    """The tokens that `content` begins with wherever in the last `window` characters before `end` it is cut.

    No token is as long as the window, so one of the cuts lies between two tokens of the whole text. What precedes that
    cut has the same tokens by itself: no merge of a BPE crosses it, and the beginning of a Unigram's best path is the
    best path there. So the tokens that all cuts agree on are those of the whole text.
    """
    common = _encode(tokenizer, content[:end])
    for cut in range(end - 1, max(0, end - window), -1):
        if len(common) < count:
            break
        ids = _encode(tokenizer, content[:cut])
        length = next((at for at, (one, other) in enumerate(zip(common, ids, strict=False)) if one != other), None)
        common = common[: min(len(common), len(ids)) if length is None else length]
    return common


def _beginning(text: Text, size: int) -> tuple[str, bool]:
    """The first `size` bytes as text, and whether that is the whole file."""
    try:
        with text.path.open("rb") as file:
            data = file.read(min(size, os.fstat(file.fileno()).st_size))
            whole = not file.read(1)
    except OSError as error:
        raise SettingError(f"--text {text.name}: cannot be read: {error.strerror or one_line(error)}") from error
    try:
        # not final: a character split by the cut is left out
        content = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        raise SettingError(f"--text {text.name}: {_not_utf8(text, data, error.start)}") from error
    if (nul := data.find(0)) >= 0:
        raise SettingError(f"--text {text.name}: {_with_nul(text, data, nul)}")
    return content, whole


def _not_utf8(text: Text, data: bytes, at: int) -> str:
    """Why bytes are no UTF-8, of which the one at `at` is the first wrong one, and what to do."""
    if encoding := _guess(data):
        return _convert(text, encoding)
    if b"\0" in data[:_LOOKED_AT]:
        return "is no text but a binary file; name a UTF-8 text"
    return (
        f"byte {at} is no UTF-8; convert the file from the encoding that it was saved in, such as CP1252 or SHIFT_JIS: "
        f"iconv -f ENCODING -t UTF-8 {_quoted(text)} > utf8.txt"
    )


def _with_nul(text: Text, data: bytes, at: int) -> str:
    """Why there is a NUL in what could be UTF-8, at the byte `at`, and what to do."""
    if encoding := _guess(data):
        return _convert(text, encoding)
    return f"byte {at} is NUL, which no text holds; remove it: tr -d '\\000' < {_quoted(text)} > clean.txt"


def _convert(text: Text, encoding: str) -> str:
    return f"is {encoding}; convert it: iconv -f {encoding} -t UTF-8 {_quoted(text)} > utf8.txt"


def _quoted(text: Text) -> str:
    path = str(text.path)
    return shlex.quote(printable(f"./{path}" if path.startswith("-") else path))


def _guess(data: bytes) -> str | None:
    """The UTF-16 or UTF-32 that bytes are beyond doubt, by their byte-order mark or by NULs beside ASCII characters."""
    head = data[:_LOOKED_AT]
    for encoding, marks in _MARKS.items():
        if head.startswith(marks) and _as_text(head, encoding):
            return encoding
    if head.count(0) < len(head) / 20:
        return None
    # read in the wrong order, ASCII characters are Chinese ones
    ascii_count = {encoding: sum(map(str.isascii, _as_text(head, encoding))) for encoding in _WITHOUT_MARK}
    best = max(ascii_count, key=lambda encoding: ascii_count[encoding])
    return best if ascii_count[best] else None


def _as_text(head: bytes, encoding: str) -> str:
    """The first bytes of a file in an encoding; empty if they hold what no text holds."""
    try:
        content = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return ""
    shown = sum(character.isprintable() or character.isspace() for character in content)
    return content if "\0" not in content and shown > 0.95 * len(content) else ""
