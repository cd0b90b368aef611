"""Text files: their tokens are those of the whole text, and what is no UTF-8 is refused with a remedy that works."""

from __future__ import annotations

import random
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="recording needs the extra `record`")

from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from hwsim.errors import SettingError
from hwsim.record import Settings, record
from hwsim.record.text import find_text, read_windows
from tests.record.conftest import make_tokenizer

WORDS = "Anne hoped she had outlived the age of blushing, é 漢字.\n"


def read(path: Path, tokenizer: Any, tokens: int) -> list[int]:
    """The first tokens of a file in one window."""
    return read_windows(find_text(str(path)), tokenizer, tokens, tokens)[0].tolist()


def written(folder: Path, content: bytes | str, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path: Path, tokenizer: Any, tokens: int = 20) -> str:
    with pytest.raises(SettingError) as caught:
        read(path, tokenizer, tokens)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Counting:
    """A tokenizer that counts the characters that it reads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.characters = tokenizer, 0

    def __call__(self, content: str, **options: Any) -> Any:
        self.characters += len(content)
        return self._tokenizer(content, **options)

    def get_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()  # type: ignore[no-any-return]


def one_word(model: Any, normalizer: Any = None) -> Any:
    """A tokenizer that does not cut a text into words, as many of sentencepiece."""
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def unigram() -> tuple[Any, str]:
    """A Unigram of Chinese characters and a text without a cut, some characters of which the model does not know."""
    draw = random.Random(0)
    characters = [chr(0x4E00 + number) for number in range(60)]
    pieces = sorted({"".join(draw.choices(characters, k=length)) for length in (2, 2, 2, 3, 3, 4, 5) * 60})
    scores = [("<unk>", 0.0)] + [(piece, -draw.uniform(2, 9)) for piece in characters + pieces]
    text = "".join(draw.choices([*characters, *pieces, "\u7fff\u7ffe\u7fff"], k=60_000))
    return one_word(models.Unigram(scores, unk_id=0), normalizers.NFKC()), text


def chain() -> tuple[Any, str]:
    """A BPE whose merges go from the end of a text to its beginning, so that tokens far before a cut depend on it."""
    letters = [chr(0x4E00 + number) for number in range(401)]
    filler = ["x" * 2**power for power in range(5)]
    merges = [(part, part) for part in filler[:-1]] + list(pairwise(letters))[::-1]
    tokens = ["<unk>", *letters, *filler, *("".join(pair) for pair in merges[4:])]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    text = "x" * 7520 + "".join(letters) + "x" * 9000
    return one_word(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>")), text


def spaces() -> tuple[Any, str]:
    return make_tokenizer(), WORDS + " " * 100_001 + "\n" + WORDS * 900


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (lambda: (make_tokenizer(), WORDS * 4000), (1, 100, 20_000)),
        (lambda: (make_tokenizer(), "." * 100_001 + WORDS * 900), (1, 2_000)),
        (spaces, (1, 2_000)),
        (unigram, (1, 600, 5_000)),
        (chain, (1, 471, 480, 500)),
    ],
    ids=["words", "dots", "spaces", "unigram", "chain"],
)
def test_tokens_are_those_of_the_whole_text(make: Any, counts: tuple[int, ...], tmp_path: Path) -> None:
    """However little of a long file is read."""
    tokenizer, content = make()
    path = written(tmp_path, content)
    whole = tokenizer(content)["input_ids"]
    for count in counts:
        assert read(path, tokenizer, count) == whole[:count], count


def test_little_of_a_long_text_is_read(tmp_path: Path) -> None:
    """Also by a tokenizer that takes the whole text for one word."""
    for tokenizer, content in ((make_tokenizer(), WORDS), unigram(), chain()):
        path = written(tmp_path, content * (2_000_000 // len(content)))
        counting = Counting(tokenizer)
        read(path, counting, 400)
        assert counting.characters < 500_000


def test_tokens_are_plain_numbers(tmp_path: Path) -> None:
    tokens, prefix = read_windows(find_text(str(written(tmp_path, WORDS))), make_tokenizer(), 8, 8)
    assert (tokens.dtype, prefix) == (np.int32, [])


def test_every_window_begins_as_a_text_does(tmp_path: Path) -> None:
    """With BOS where the tokenizer has one: each window is a sequence of its own."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    path = written(tmp_path, WORDS * 20)
    plain = read(path, tokenizer, 100)
    bos = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = bos
    tokens, prefix = read_windows(find_text(str(path)), tokenizer, 40, 16)
    assert prefix == [0]
    assert tokens.tolist() == [0, *plain[:15], 0, *plain[15:30], 0, *plain[30:37]]
    with pytest.raises(SettingError, match="--context 1: each window begins with 1 token"):
        read_windows(find_text(str(path)), tokenizer, 40, 1)


def test_a_file_comes_before_a_bundled_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_text("persuasion").name == "persuasion.txt"
    (tmp_path / "persuasion").write_text("mine")
    assert find_text("persuasion").name == "persuasion"


@pytest.mark.parametrize(
    "content", ["One.\r\nTwo.\r\n" * 9, "One.\n\fTwo.\rThree.\v\x85\u2028" * 9, "a\ufeffb \ufffd" * 9]
)
def test_every_character_counts(content: str, tmp_path: Path) -> None:
    """Ends of lines, form feeds and the like are read as they are; only a byte-order mark is left out."""
    tokenizer = make_tokenizer()
    ids = tokenizer(content)["input_ids"]
    assert tokenizer.decode(ids) == content
    assert read(written(tmp_path, content), tokenizer, len(ids)) == ids
    assert read(written(tmp_path, "\ufeff" + content), tokenizer, len(ids)) == ids


def test_a_special_token_in_the_text_is_that_token(tmp_path: Path) -> None:
    """As transformers reads it; also where the file is read in part."""
    tokenizer = make_tokenizer()
    content = "One.</s>Two.<s>" * 2000
    ids = read(written(tmp_path, content), tokenizer, 200)
    assert {0, 1} < set(ids)
    assert ids == tokenizer(content)["input_ids"][:200]
    assert tokenizer.decode(ids).startswith("One.</s>Two.<s>One.")


RUSSIAN, CHINESE = "Это проверка.\n" * 60, "一, 二, 三.\n" * 60


@pytest.mark.parametrize("content", [WORDS * 200, RUSSIAN, CHINESE], ids=["english", "russian", "chinese"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_that_show_themselves(content: str, encoding: str, tmp_path: Path) -> None:
    path = written(tmp_path, content.encode(encoding), "it's mine.txt")
    message = refused(path, make_tokenizer())
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert message.startswith(f"--text it's mine.txt: is {name}; convert it: iconv -f {name} -t UTF-8 ")
    assert repaired(tmp_path, message) == content


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (WORDS[:40] + "café “x”\n", "cp1252"),
        ("これは試験です。", "shift_jis"),
        (RUSSIAN, "koi8-r"),
        ("一二三。", "gb18030"),
    ],
)
def test_encodings_that_only_the_writer_knows(content: str, encoding: str, tmp_path: Path) -> None:
    path = written(tmp_path, (content * 100).encode(encoding))
    message = refused(path, make_tokenizer())
    assert "is no UTF-8; convert the file from the encoding that it was saved in" in message
    assert "LATIN1" not in message
    assert repaired(tmp_path, message.replace("ENCODING", encoding)) == content * 100


@pytest.mark.parametrize("at", [0, 1, 30, 3000])
def test_a_nul_is_no_character_of_a_text(at: int, tmp_path: Path) -> None:
    content = WORDS * 80
    path = written(tmp_path, content[:at] + "\0" + content[at:])
    message = refused(path, make_tokenizer())
    assert f": byte {len(content[:at].encode())} is NUL, which no text holds; remove it: tr -d " in message
    assert repaired(tmp_path, message) == content


def repaired(folder: Path, message: str) -> str:
    """What the command at the end of a message makes of the file."""
    command = next(message[message.index(name) :] for name in ("iconv -f", "tr -d") if name in message)
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"needs {command.split()[0]}")
    subprocess.run(command, shell=True, check=True, cwd=folder)
    return (folder / command.split()[-1]).read_bytes().decode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a text"),
        (b"\xef\xbb\xbf", "is empty; give a text"),
        (b"Anne", "has [0-9]+ tokens, --tokens asks for 20; give a longer text, or --tokens [0-9]+$"),
        (b"Anne \xed\xa0\x80 hoped " * 9, "byte 5 is no UTF-8"),  # half of a surrogate pair
        (b"Anne hoped " * 9 + b"\xc3", "byte 99 is no UTF-8"),  # cut in a character
        (bytes(range(256)) * 40, "is no text but a binary file"),
        (b"PK\x03\x04\0\0\xff" * 900, "is no text but a binary file"),
        (b"\xff\xfe" + b"a\0\0\xd8" * 900, "is no text but a binary file"),  # UTF-16 with half of a pair
    ],
)
def test_files_that_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(SettingError, match=f"^--text text.txt: {message}"):
        read(path, make_tokenizer(), 20)


def test_a_text_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="neither a file nor a bundled text"):
        find_text(str(tmp_path / "emma.txt"))
    with pytest.raises(SettingError, match="neither a file nor a bundled text"):
        find_text(str(tmp_path))


@pytest.mark.parametrize("content", [WORDS.encode() * 3, WORDS.encode() * 900])
def test_a_file_that_changes_while_it_is_read(content: bytes, tmp_path: Path) -> None:
    """Else the provenance would name another text than was read."""
    path = written(tmp_path, content)
    text = find_text(str(path))
    path.write_bytes(content + b"More.")
    with pytest.raises(SettingError, match=r"^--text text.txt: changed while it was read; run the command again when"):
        read_windows(text, make_tokenizer(), 20, 20)
    path.unlink()
    with pytest.raises(SettingError, match=r"^--text text.txt: cannot be read: No such file"):
        read_windows(text, make_tokenizer(), 20, 20)


def test_a_refused_text_leaves_no_trace(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = written(tmp_path, WORDS.encode("utf-16-le"))
    with pytest.raises(SettingError, match="is UTF-16LE"):
        record(tmp_path / "t.npz", str(checkpoints["llama"]), str(path), Settings(16, 16))
    assert list(tmp_path.iterdir()) == [path]
