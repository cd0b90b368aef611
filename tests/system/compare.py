"""The comparison of a result with a golden one: every key of the golden is there, and every value is identical."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

# Versions, and the hash of a plug-in's source file, change with every edit and are no results.
EXCLUDED = re.compile(r"(^|\.)(hwsim|numpy|torch|transformers|(policy|eviction|prefetch)\.sha256)$")
RELATIVE = 1e-12  # of floats, where numpy rounds otherwise than on the machine of the golden


def differences(golden: Any, result: Any, path: str = "", relative: float = 0.0) -> list[str]:
    """The path of each difference, with both values; an empty list where there is none.

    Keys of `result` that `golden` lacks are no difference. Types count: 1 is not 1.0. With `relative` 0 floats are
    compared bit for bit.
    """
    return list(_differences(golden, result, path, relative))


def _differences(golden: Any, result: Any, path: str, relative: float) -> Iterator[str]:
    if EXCLUDED.search(path):
        return
    if type(golden) is not type(result):
        yield f"{path}: golden {_show(golden)}, now {_show(result)}"
    elif isinstance(golden, dict):
        for key, value in golden.items():
            inner = f"{path}.{key}" if path else key
            if key in result:
                yield from _differences(value, result[key], inner, relative)
            else:
                yield f"{inner}: golden {_show(value)}, now missing"
    elif isinstance(golden, list):
        if len(golden) != len(result):
            yield f"{path}: golden has {len(golden)} entries, now {len(result)}"
        for index, (value, other) in enumerate(zip(golden, result, strict=False)):
            yield from _differences(value, other, f"{path}[{index}]", relative)
    elif isinstance(golden, float):
        same = golden.hex() == result.hex()
        if not same and not (relative and math.isclose(golden, result, rel_tol=relative)):
            yield f"{path}: golden {golden!r}, now {result!r}"
    elif golden != result:
        yield f"{path}: golden {_show(golden)}, now {_show(result)}"


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."


def check(golden: Any, result: Any, relative: float = 0.0) -> None:
    """Fail with all differences."""
    found = differences(golden, result, relative=relative)
    assert not found, f"{len(found)} differences from the golden result\n" + "\n".join(found[:50])


@cache
def arithmetic() -> str:
    """What numpy makes of functions that round differently on other processors: a fingerprint of this machine's."""
    values = np.linspace(0.01, 9.7, 2011)
    single = values.astype(np.float32)
    matrix = np.sin(np.arange(48 * 120, dtype=np.float64)).reshape(48, 120).astype(np.float32)
    made = (np.exp(values), np.log(values), np.exp(-single), np.log(single), single[:48] @ matrix, np.tanh(single))
    return " ".join(hashlib.sha256(each.tobytes()).hexdigest()[:8] for each in made)
