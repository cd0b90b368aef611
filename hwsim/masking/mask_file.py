"""Masks as a file: what a closed loop decided, to be replayed exactly on any device with any cache.

A ``.npz`` without compression: ``header``, JSON with ``format`` "hwsim-masks" and ``version`` 1, the model, the
sequences, the policy and its groups; and for each layer and group ``masks/000/NAME``, uint8
``[decoded tokens, ceil(indices / 8)]``, the bits of ``numpy.packbits`` along the group's axis.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from copy import copy
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from pydantic import ValidationError

from hwsim.cache.cache import CacheSetup
from hwsim.errors import OutputError, SettingError, TraceError, one_line
from hwsim.evictions import Eviction
from hwsim.masking.counts import Demand, serve
from hwsim.masking.observers import Watching
from hwsim.masking.scan import CacheListener
from hwsim.masking.shared_scan import SharedCaches, count_shared
from hwsim.memory.placement import GroupPlan, Placement
from hwsim.model.lora import Adapter
from hwsim.model.shape import ModelShape
from hwsim.policy import Field, Group, Policy
from hwsim.trace import Sequence, TraceHeader
from hwsim.util.arrayfile import check_unpacked

FORMAT = "hwsim-masks"


class SavedPolicy(Policy):
    """The policy that made a file of masks: its groups, without its rule."""

    name: str
    parameters: dict[str, Any]
    cut: list[dict[str, Any]]
    keeps: dict[str, list[float | None]] = Field(default_factory=dict)  # of the groups whose keep differs by layer
    predictor: int = 0

    def groups(self, model: ModelShape) -> list[Group]:
        """As they were."""
        return [Group(**each) for each in self.cut]

    def in_layer(self, layer: int) -> Policy:
        """With the keeps of that layer."""
        if not self.keeps:
            return self
        cut = [
            each | ({"keep": self.keeps[each["name"]][layer]} if each["name"] in self.keeps else {})
            for each in self.cut
        ]
        return self.model_copy(update={"cut": cut, "keeps": {}})

    def predictor_parameters(self, model: ModelShape) -> int:
        """As they were."""
        return self.predictor


class MaskWriter:
    """Writes the masks of one closed loop; they go to disk as they come.

    Until `finish` they lie in a folder beside the file, ``NAME.*.partial``.

    Raises:
        OutputError: the place cannot be written, or holds something other than masks.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is no regular file; name another")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: cannot be written: the folder {path.parent} does not exist")
        if path.exists() and not is_mask_file(path):
            raise OutputError(f"{path}: exists and holds no masks; name another file")
        self.path = path
        self._folder: Path | None = None
        self._members: dict[str, np.memmap[Any, Any]] = {}

    def begin(
        self,
        header: TraceHeader,
        plans: tuple[GroupPlan, ...],
        name: str,
        policy: Policy,
        predictor: int,
        adapter: Adapter | None = None,
    ) -> None:
        """Make room for the masks of all decoded tokens."""
        about = {
            "format": FORMAT,
            "version": 1,
            "model": header.model.model_dump(),
            "sequences": [sequence.model_dump() for sequence in header.sequences],
            "policy": {"name": name, "parameters": policy.model_dump(mode="json")},
            "predictor_parameters": predictor,
            "groups": [vars(plan.group) for plan in plans],
            "provenance": header.provenance,
        }
        keeps = {plan.group.name: list(plan.keep) for plan in plans if len(set(plan.keep)) > 1}
        about |= {"keeps": keeps} if keeps else {}
        about |= {"adapter": {"name": adapter.folder.name, "sha256": adapter.sha256}} if adapter else {}
        try:
            folder = self._folder = Path(mkdtemp(".partial", f"{self.path.name}.", self.path.parent))
            np.save(folder / "header.npy", np.array(json.dumps(about, sort_keys=True)))
            for layer in range(header.model.num_hidden_layers):
                for plan in plans:
                    shape = (header.decoded, -(-plan.indices // 8))
                    file = folder / _flat(_member(layer, plan.group.name))
                    self._members[_member(layer, plan.group.name)] = np.lib.format.open_memmap(
                        file, "w+", np.uint8, shape
                    )
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error

    def __call__(self, layer: int, group: str, token: int, masks: np.ndarray) -> None:
        """Masks of decoded tokens from `token` on, bool ``[tokens, indices]``."""
        self._members[_member(layer, group)][token : token + len(masks)] = np.packbits(masks, axis=1)

    def finish(self) -> None:
        """Put the members into one file and give it its name."""
        if self._folder is None:
            raise OutputError(f"{self.path}: no masks were begun")
        folder = self._folder
        partial = folder / "whole"
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                names = ["header", *self._members]
                for name in names:
                    if name in self._members:
                        self._members[name].flush()
                    # no clock in the file: the same run gives the same bytes
                    entry = zipfile.ZipInfo(f"{name}.npy")
                    with (
                        archive.open(entry, "w", force_zip64=True) as into,
                        (folder / _flat(name)).open("rb") as file,
                    ):
                        shutil.copyfileobj(file, into)
            partial.replace(self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error
        self.discard()

    def discard(self) -> None:
        """Leave nothing half-written."""
        self._members.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _member(layer: int, group: str) -> str:
    return f"masks/{layer:03d}/{group}"


def _flat(name: str) -> str:
    return name.replace("/", ".") + ".npy"


class MaskFile:
    """Masks that were saved.

    Attributes:
        model: shape of the model.
        sequences: windows of the text.
        policy: stands for the one that made them.

    Raises:
        TraceError: no such file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            about = json.loads(str(self._member("header")))
            self.model = ModelShape.model_validate(about["model"])
            self.sequences = [Sequence.model_validate(each) for each in about["sequences"]]
            made = about["policy"]
            self.policy = SavedPolicy(
                name=made["name"],
                parameters=made["parameters"],
                cut=about["groups"],
                keeps=about.get("keeps", {}),
                predictor=about["predictor_parameters"],
            )
            self.provenance: dict[str, Any] = about["provenance"]
            self._adapter: dict[str, str] = about.get("adapter") or {}
        except (OSError, ValueError, KeyError, TypeError, ValidationError, RecursionError) as error:
            raise TraceError(f"{path}: is no file of masks, or is damaged: {one_line(error)[:120]}") from error

    def _member(self, name: str) -> np.ndarray:
        """One array of the file."""
        try:
            check_unpacked(self.path)
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                found = archive[name]
        except (OSError, KeyError):
            raise
        except Exception as error:  # numpy raises many kinds for archives that are damaged or lie
            raise ValueError(one_line(error)) from error
        if not isinstance(found, np.ndarray):  # numpy hands out what is no array as it is
            raise ValueError(f"{name} is no array")
        return found

    def without_masks(self) -> MaskFile:
        """The same tokens, read densely."""
        dense = copy(self)
        dense.policy = SavedPolicy(name="dense", parameters={}, cut=[])
        return dense

    def check_adapter(self, adapter: Adapter | None) -> None:
        """Whether the masks are replayed with the LoRA adapter that they were made with, which takes room in DRAM.

        Raises:
            SettingError: with another one, without it, or with one that they were made without.
        """
        given, needed = (adapter.sha256 if adapter else None), self._adapter.get("sha256")
        if self.policy.cut and given != needed:
            was = f"the adapter {self._adapter['name']}" if needed else "no adapter"
            way = f"give --lora FOLDER of {self._adapter['name']}" if needed else "leave out --lora"
            raise SettingError(f"{self.path}: the masks were made with {was}; {way}")

    def demand(
        self,
        placement: Placement,
        eviction: Eviction,
        setup: CacheSetup | None = None,
        contents: CacheListener | None = None,
        watching: Watching | None = None,
    ) -> Demand:
        """What the masks ask of the caches of a placement. A unit of several indices is needed if any of them is.

        Args:
            placement: the groups and their caches.
            eviction: picks who leaves a cache.
            setup: how caches admit, and what is in them from the start; those that groups share have none.
            contents: is told what each holds at the end.
            watching: what is looked at besides counts.

        Raises:
            TraceError: masks are missing, or of another shape than the header says.
            SettingError: the rule cannot serve a shared cache.
        """
        plans, layers = placement.groups, self.model.num_hidden_layers
        tokens = [sequence.tokens - sequence.prompt for sequence in self.sequences]
        decoded = sum(tokens)
        if placement.shared:
            return count_shared(
                lambda layer, index: np.packbits(self._units(layer, plans[index], decoded), axis=1),
                tokens,
                SharedCaches(plans, layers, placement.shared, eviction),
                contents=contents,
                watching=watching,
            )
        demand = Demand.none(decoded, layers, plans, watching)
        for layer in range(layers):
            for index, plan in enumerate(plans):
                masks = self._units(layer, plan, decoded)
                capacity, start = plan.capacity_in(layer), 0
                cache = (setup or CacheSetup()).cache(layer, plan.group.name, plan.units, capacity, eviction)
                for length in tokens:
                    end = start + length
                    cache.start(masks[start:end] if eviction.needs_future else None)
                    for row in range(start, end):
                        demand.put(row, layer, index, serve(cache, plan, masks[row]))
                    start = end
                if contents:
                    contents(layer, plan.group.name, cache.view)
        return demand

    def _units(self, layer: int, plan: GroupPlan, decoded: int) -> np.ndarray:
        """bool ``[decoded, units]``."""
        masks, blocks = self._read(layer, plan, decoded), plan.blocks(layer)
        return masks if blocks is None else np.stack([blocks.touched(mask) for mask in masks])

    def _read(self, layer: int, plan: GroupPlan, decoded: int) -> np.ndarray:
        """bool ``[decoded, indices]``."""
        name = _member(layer, plan.group.name)
        try:
            packed = self._member(name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TraceError(f"{self.path}: {name} is missing or damaged") from error
        wanted = (decoded, -(-plan.indices // 8))
        if packed.shape != wanted or packed.dtype != np.uint8:
            raise TraceError(f"{self.path}: {name}: {packed.dtype} {packed.shape}, the header says uint8 {wanted}")
        return np.unpackbits(packed, axis=1, count=plan.indices).astype(bool)


def is_mask_file(path: Path) -> bool:
    """Whether a file holds masks rather than signals."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("masks/") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
