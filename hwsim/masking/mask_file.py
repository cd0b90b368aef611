"""Files of masks that a closed loop decided, to be replayed exactly on any device with any cache.

A ``.npz`` without compression: ``header``, JSON with ``format`` "hwsim-masks" and ``version`` 1, the model, the
sequences, the policy and its groups, and the stored bytes of the weights if they are known; and for each layer and
group ``masks/000/NAME``, uint8 ``[decoded tokens, ceil(indices / 8)]``, the bits of ``numpy.packbits`` along the
group's axis.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from pydantic import ValidationError

from hwsim.errors import OutputError, SettingError, TraceError, one_line
from hwsim.masking.counts import Counts, Served
from hwsim.masking.observers import Observer
from hwsim.masking.scan import Tally, count, saved_streams
from hwsim.masking.streams import Masking
from hwsim.memory.groups import GroupPlan, Place
from hwsim.memory.placement import Placement
from hwsim.model.lora import Adapter
from hwsim.model.shape import ModelShape
from hwsim.model.stored import StoredBytes
from hwsim.policy import Field, Group, Policy
from hwsim.trace import Sequence, TraceHeader
from hwsim.trace.sequences import Sequences
from hwsim.util.arrayfile import check_unpacked

FORMAT = "hwsim-masks"


class SavedPolicy(Policy):
    """Stands for the policy that decided the masks of a file: it has its groups, but not its rule."""

    name: str
    parameters: dict[str, Any]
    cut: list[dict[str, Any]]
    keeps: dict[str, list[float | None]] = Field(default_factory=dict)  # of the groups whose keep differs by layer
    predictor: int = 0

    def groups(self, model: ModelShape) -> list[Group]:
        """The groups of the saved masks."""
        return [Group(**fields) for fields in self.cut]

    def in_layer(self, layer: int) -> Policy:
        """The policy with the keeps of one layer."""
        if not self.keeps:
            return self
        cut = [
            fields | ({"keep": self.keeps[fields["name"]][layer]} if fields["name"] in self.keeps else {})
            for fields in self.cut
        ]
        return self.model_copy(update={"cut": cut, "keeps": {}})

    def predictor_parameters(self, model: ModelShape) -> int:
        """The number that was saved."""
        return self.predictor


class MaskWriter(Observer):
    """Writes the masks of one closed loop to disk as they are decided.

    Until `finish`, they are in a folder beside the file, ``NAME.*.partial``.

    Raises:
        OutputError: the path cannot be written, or is a file without masks.
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

    def begin(self, header: TraceHeader, masking: Masking, placement: Placement) -> None:
        """Create the arrays for the masks of all decoded tokens.

        Raises:
            SettingError: a group is of experts, whose order of use a file of masks does not hold.
            OutputError: they cannot be written.
        """
        if placement.plans.sparse:
            raise SettingError(
                "--save-masks: a file of masks does not hold the order in which experts are used, so a replay would "
                "find other hits; leave it out, or record the model with hwsim record"
            )
        groups, keeps = placement.plans.declared()
        about = {
            "format": FORMAT,
            "version": 1,
            "model": header.model.model_dump(),
            "sequences": [sequence.model_dump() for sequence in header.sequences],
            "policy": {"name": masking.name, "parameters": masking.policy.model_dump(mode="json")},
            "predictor_parameters": placement.parameters.predictor,
            "groups": [vars(group) for group in groups],
            "provenance": header.provenance,
        }
        about |= {"keeps": keeps} if keeps else {}
        about |= {"stored": header.stored.model_dump()} if header.stored else {}
        adapter = placement.adapter
        about |= {"adapter": {"name": adapter.folder.name, "sha256": adapter.sha256}} if adapter else {}
        try:
            folder = self._folder = Path(mkdtemp(".partial", f"{self.path.name}.", self.path.parent))
            np.save(folder / "header.npy", np.array(json.dumps(about, sort_keys=True)))
            for plan in placement.plans:
                name, shape = _member(plan), (header.decoded, -(-plan.indices // 8))
                self._members[name] = np.lib.format.open_memmap(folder / _flat(name), "w+", np.uint8, shape)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Write the masks of the decoded tokens from `token` on."""
        rows = slice(token, token + len(served.masks))
        self._members[_member(place.plan)][rows] = np.packbits(served.masks, axis=1)

    def finish(self) -> None:
        """Put the arrays into one file and move it to its path."""
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
                    # without a time stamp, so that the same run gives the same bytes
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
        """Remove everything that is half-written."""
        self._members.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _member(plan: GroupPlan) -> str:
    return f"masks/{plan.layer:03d}/{plan.name}"


def _flat(name: str) -> str:
    return name.replace("/", ".") + ".npy"


class MaskFile:
    """A file of saved masks.

    Attributes:
        model: shape of the model.
        sequences: windows of the text.
        stored: bytes of the model's matrices in its files; None: unknown.
        policy: stands for the policy that decided them.

    Raises:
        TraceError: there is no such file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            about = json.loads(str(self._member("header")))
            self.model = ModelShape.model_validate(about["model"])
            self.sequences = [Sequence.model_validate(entry) for entry in about["sequences"]]
            self.stored = StoredBytes.model_validate(about["stored"]) if about.get("stored") else None
            if self.stored:
                self.stored.check(self.model)
            policy = about["policy"]
            self.policy = SavedPolicy(
                name=policy["name"],
                parameters=policy["parameters"],
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
                array = archive[name]
        except (OSError, KeyError):
            raise
        except Exception as error:  # numpy raises many kinds for archives that are damaged or inconsistent
            raise ValueError(one_line(error)) from error
        if not isinstance(array, np.ndarray):  # numpy returns members that are no arrays as bytes
            raise ValueError(f"{name} is no array")
        return array

    def without_masks(self) -> MaskFile:
        """The same tokens with a dense policy."""
        dense = copy(self)
        dense.policy = SavedPolicy(name="dense", parameters={}, cut=[])
        return dense

    def check_adapter(self, adapter: Adapter | None) -> None:
        """Check that masks are replayed with the LoRA adapter they were made with, because it takes room in DRAM.

        Raises:
            SettingError: the adapter is missing, another one, or given although the masks were made without one.
        """
        given, needed = (adapter.sha256 if adapter else None), self._adapter.get("sha256")
        if self.policy.cut and given != needed:
            was = f"the adapter {self._adapter['name']}" if needed else "no adapter"
            way = f"give --lora FOLDER of {self._adapter['name']}" if needed else "leave out --lora"
            raise SettingError(f"{self.path}: the masks were made with {was}; {way}")

    def count(self, masking: Masking, observers: Iterable[Observer] = ()) -> Counts:
        """Count requests and hits of the masks. A unit of several indices is needed if any of its indices is.

        Args:
            masking: the groups and their caches.
            observers: receive the masks and the final content of each cache.

        Raises:
            TraceError: masks are missing, or have another shape than the header states.
            SettingError: the rule cannot serve a shared cache.
        """
        sequences = Sequences(self.sequences)
        tally = Tally(Counts.none(sequences.decoded_tokens, masking.plans), observers)

        def units(place: Place) -> np.ndarray:
            masks, blocks = self._read(place.plan, sequences.decoded_tokens), place.plan.blocks()
            masks = masks if blocks is None else np.stack([blocks.touched(mask) for mask in masks])
            return masks if masking.shared is None else np.packbits(masks, axis=1)

        count(saved_streams(units, masking), sequences, masking, tally)
        return tally.counts

    def _read(self, plan: GroupPlan, decoded: int) -> np.ndarray:
        """The masks of a group, bool ``[decoded, indices]``."""
        name = _member(plan)
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
