"""How large a model's weights are, by the headers of its files alone."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FRACTIONS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the number formats that are loaded in another one. Source: safetensors' `Dtype`."""

MOST_HEADER_BYTES = 100_000_000
"""Source: `MAX_HEADER_SIZE` of safetensors."""

_LAYER = re.compile(r"(?:.*?\.)?\d+(?=\.)")
"""The part of a weight's name that says which of the repeated layers it belongs to."""


@dataclass(frozen=True)
class Weights:
    """The weights of a model, in numbers.

    Attributes:
        in_layers: of all repeated layers.
        beside: of everything else: tables of tokens, the head.
        largest: of the largest layer, or of the largest weight beside them.
    """

    in_layers: int
    beside: int
    largest: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.in_layers + self.beside


def weights_of(folder: Path) -> Weights | None:
    """Returns the size of a model's weights; None where they are pickled, which does not tell.

    Numbers that are no fractions, as in weights that are packed, count by their bytes. Nor do files
    tell that are damaged, of which whoever loads them says more.
    """
    try:
        return _counted(_files(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return None


def _counted(files: list[Path]) -> Weights | None:
    if not files:
        return None
    layers: Counter[str] = Counter()
    beside: dict[str, int] = {}
    for name, numbers in (pair for file in files for pair in _numbers(file)):
        layer = _LAYER.match(name)
        if layer is None:
            beside[name] = numbers
        else:
            layers[layer[0]] += numbers
    largest = max([*layers.values(), *beside.values()], default=0)
    return Weights(sum(layers.values()), sum(beside.values()), largest)


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [one for one in [folder / "model.safetensors"] if one.is_file()]
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(shards))]


def _numbers(file: Path) -> Iterator[tuple[str, int]]:
    """Yields each weight of a file by name, with its numbers.

    Source: the format of safetensors, eight bytes with the length of the header, and JSON.
    """
    with file.open("rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header: Mapping[str, Any] = json.loads(content.read(length))
    size = file.stat().st_size - 8 - length
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            if end > size:
                raise ValueError(f"a weight up to {end} in a file with {size} bytes of them")
            yield name, (end - start) // _FRACTIONS.get(entry["dtype"], 1)
