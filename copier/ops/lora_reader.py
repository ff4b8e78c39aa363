"""Reads a LoRA file of any kind, module by module."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import torch

from copier.algebra.delta import Delta, LowRankDelta
from copier.algebra.parts import delta_from_parts
from copier.checkpoint.dtypes import torch_dtype
from copier.checkpoint.family import Family, detect
from copier.checkpoint.header import Header
from copier.checkpoint.lora_keys import layout_of
from copier.checkpoint.lora_names import lora_table
from copier.checkpoint.reader import TensorReader
from copier.errors import BadCheckpoint, BadInput, UnknownName

_SHOWN = 12


class LoraReader:
    """A LoRA file, open for reading; a context manager. Only ``delta`` reads tensors.

    Modules have the names that hosts know (``checkpoint.lora_names``), whatever the file calls them;
    a bias change is the module ``<module>.bias``.

    Raises on construction:
        BadInput: there is no such file, or it is no LoRA.
        BadCheckpoint: it is no whole, valid safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._reader = TensorReader(path)
        try:
            identity = detect(self.header)
            self.layout: str = layout_of(self.header.tensors)
            if not self.layout:
                raise BadInput(f"{self.path.name!r} is no LoRA (it is: {identity.kind.value})")
            self.family: Family = identity.family
            self._table = lora_table(tuple(self.header.tensors), identity.family)
        except BaseException:
            self._reader.close()
            raise

    def __enter__(self) -> LoraReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()

    @property
    def header(self) -> Header:
        """The file's header."""
        return self._reader.header

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's ``__metadata__``; empty where it has none."""
        return self._reader.metadata

    @property
    def modules(self) -> Mapping[str, Mapping[str, str]]:
        """Module name -> part ("up", "hada_w1_a", "alpha", ...) -> key in the file; also of damaged ones."""
        return self._table.modules

    @functools.cached_property
    def problems(self) -> Mapping[str, str]:
        """What cannot be used, from the header alone: module or key -> why."""
        return MappingProxyType({**self._table.unknown, **self._outlined[1]})

    @functools.cached_property
    def outlines(self) -> Mapping[str, Delta]:
        """Module name -> its delta without values (on the device "meta"): kind, shape and rank.

        Modules with a problem are left out.
        """
        return MappingProxyType(self._outlined[0])

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Module name -> shape of its change (``Delta.shape``), from the header alone.

        Raises:
            BadCheckpoint: as ``require_sound``.
        """
        self.require_sound()
        return MappingProxyType({name: delta.shape for name, delta in self.outlines.items()})

    def require_sound(self) -> None:
        """Raise BadCheckpoint where the header shows that a module or key cannot be used; names them."""
        found = [f"{name!r}: {why}" for name, why in self.problems.items()]
        if found:
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise BadCheckpoint(f"{self.path.name!r} cannot be used: {'; '.join(found[:_SHOWN])}{more}")

    def require_factors(self) -> None:
        """Raise BadCheckpoint unless every module is sound, and a product of two thin factors."""
        self.require_sound()
        for name, outline in self.outlines.items():
            if not isinstance(outline, LowRankDelta):
                kind = {"loha": "a LoHa", "lokr": "a LoKr", "full": "a full difference"}[outline.kind]
                raise BadCheckpoint(
                    f"{self.path.name!r} has modules that are no product of two thin factors ({name!r} is "
                    f"{kind}): merge it into a checkpoint, and extract a LoRA from the two checkpoints"
                )

    def delta(self, name: str, device: str = "cpu") -> Delta:
        """The change of the module ``name`` in float32 on ``device``; reads its tensors only.

        Raises:
            UnknownName: no such module.
            BadCheckpoint: the module is incomplete, of a kind that has no fixed change (DoRA), or
                damaged: NaN, infinite values, integers, shapes that do not multiply.
        """
        if name in self.problems:
            raise BadCheckpoint(f"the module {name!r}: {self.problems[name]}")
        return self._build(name, lambda key: self._reader.tensor(key).to(device))

    @functools.cached_property
    def _outlined(self) -> tuple[dict[str, Delta], dict[str, str]]:
        deltas: dict[str, Delta] = {}
        problems: dict[str, str] = {}
        for name in self.modules:
            try:
                deltas[name] = self._build(name, self._outline)
            except BadCheckpoint as error:
                problems[name] = str(error.__cause__ or error)
        return deltas, problems

    def _outline(self, key: str) -> torch.Tensor:
        info = self.header.tensors[key]
        dtype = torch_dtype(info.dtype)
        if 0 in info.shape:  # its other sizes may be larger than torch allows
            raise BadInput(f"{key!r} has the shape {list(info.shape)}: no size may be 0")
        return torch.empty(
            info.shape, dtype=torch.float32 if dtype.is_floating_point else dtype, device="meta"
        )

    def _build(self, name: str, load: Callable[[str], torch.Tensor]) -> Delta:
        parts = self.modules.get(name)
        if parts is None:
            raise UnknownName(f"module in {self.path.name!r}", name, self.modules)
        try:
            return delta_from_parts({part: load(key) for part, key in parts.items()})
        except BadInput as error:
            raise BadCheckpoint(f"the module {name!r}: {error}") from error
