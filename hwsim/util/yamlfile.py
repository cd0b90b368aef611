"""Read YAML files of users: bounded in size, safe, and with one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hwsim.errors import HwsimError, one_line

_MAX_FILE = 2**20


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses repeated keys, and aliases, with which a small file can expand to a huge one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
                keys.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path, kind: type[HwsimError], what: str, needs: str) -> dict[str, Any]:
    """The mapping that a file holds.

    Args:
        path: of the file, of at most 1 MiB.
        kind: class of the error that is raised.
        what: name of the expected kind of file, for messages, such as "hardware profile".
        needs: the fields that such a file has at least, for messages.

    Raises:
        HwsimError: of class `kind`: the file cannot be read, is too large, or is no mapping in YAML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        raise kind(f"{path}: cannot be read: {getattr(error, 'strerror', None) or one_line(error)}") from error
    if len(text) > _MAX_FILE:
        raise kind(f"{path}: is larger than 1 MiB; this is no {what}")
    try:
        data = yaml.load(text, _Loader)  # derives from SafeLoader
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise kind(f"{path}: {at}{error.problem or 'not YAML'}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise kind(f"{path}: is not YAML") from error
    if not isinstance(data, dict):
        raise kind(f"{path}: is no {what}; it needs at least {needs}")
    if (other_kind := _something_else(data)) and other_kind != what:
        raise kind(f"{path}: is a {other_kind}, no {what}; that needs at least {needs}")
    return data


def _something_else(data: dict[Any, Any]) -> str | None:
    """The kind of a mapping from its ``format``, or from keys that only one kind has; None if unknown."""
    if str(data.get("format", "")).startswith("hwsim-"):
        return "result of hwsim"
    return "hardware profile" if {"flash", "dram"} <= data.keys() and isinstance(data["flash"], dict) else None
