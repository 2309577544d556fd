"""Refuses model files that would run code, read elsewhere or take all memory and time."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.messages import shown as value_shown

_REPEATED = re.compile(r"layers?$|^n_layer|blocks$|experts$|groups?$|stages$|depth$")
"""Settings that say how often a part of a model is made."""

MOST_REPEATED = 10_000
MOST_EXPERTS = 200_000
"""Of all layers together; the largest models have some thirty thousand."""

MOST_LABELS = 1_000_000
"""Where only their number is given; transformers makes a name for each."""


def refuse_impossible(config: dict[str, Any], shown: str) -> None:
    """Raises ModelLoadError for numbers in config.json that no model has.

    Transformers makes the parts of a model before it looks at the weights: a number of layers alone
    can take hours and all memory.
    """
    layers = experts = 1
    for name, value in _numbers(config):
        most = MOST_LABELS if name == "num_labels" else MOST_REPEATED
        if (name == "num_labels" or _REPEATED.search(name)) and value > most:
            _refuse_number(shown, f"{name}={value_shown(value)}", most)
        if "layer" in name and _REPEATED.search(name):
            layers = max(layers, value)
        if name.endswith("experts"):
            experts = max(experts, value)
    if layers * experts > MOST_EXPERTS:
        _refuse_number(shown, f"{experts} experts in each of {layers} layers", MOST_EXPERTS)


def _refuse_number(shown: str, what: str, most: int) -> None:
    raise ModelLoadError(
        f"{shown}: config.json says {what}, expected at most {most:,}, as models have; copy or "
        "save the model again"
    )


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields the whole numbers of a configuration and of those in it, by name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def refuse_foreign_kernels(config: dict[str, Any], shown: str) -> None:
    """Raises ModelLoadError where config.json names code on the hub that computes a part."""
    for name, value in config.items():
        if isinstance(value, dict):
            refuse_foreign_kernels(value, shown)
        elif name.endswith("_implementation") and "/" in str(value):
            raise ModelLoadError(
                f"{shown}: config.json names code on the hub ({name}={value_shown(value)}), which "
                "is not run unless trusted; read it, then pass --set loading.trust_remote_code=true"
            )


def refuse_foreign_tokenizer(config: dict[str, Any], shown: str) -> None:
    """Raises ModelLoadError where tokenizer_config.json names code for a class of its own."""
    import transformers

    name = config.get("tokenizer_class")
    if "auto_map" in config and not hasattr(transformers, str(name)):
        raise ModelLoadError(
            f"{shown}: tokenizer_config.json names custom Python code (auto_map) for the class "
            f"{value_shown(name)}, which transformers does not know; the code is not run unless "
            "trusted: read it, then pass --set loading.trust_remote_code=true"
        )


def refuse_outside(folder: Path, model: Path, shown: str) -> None:
    """Raises ModelLoadError for links that lead out of a model's folder, and for what is no file.

    The hub's cache keeps what a snapshot links to in a folder next to it.

    Args:
        folder: looked at; the model's folder or one in it.
        model: the model's folder.
        shown: the model, for the message.
    """
    inside = [model.resolve()]
    if model.parent.name == "snapshots":
        inside.append((model.parent.parent / "blobs").resolve())
    if not folder.resolve().is_relative_to(inside[0]):
        _refuse_link(folder, model, shown)
    for path in folder.iterdir():
        if not path.exists() or path.is_dir():
            continue
        if not path.is_file():
            raise ModelLoadError(
                f"{shown}: {path.relative_to(model)} is neither a file nor a folder; remove it "
                "from the folder"
            )
        if path.is_symlink() and not any(map(path.resolve().is_relative_to, inside)):
            _refuse_link(path, model, shown)


def _refuse_link(path: Path, model: Path, shown: str) -> None:
    raise ModelLoadError(
        f"{shown}: {path.relative_to(model)} is a link that leads out of the folder, to "
        f"{str(path.resolve())!r}; copy what is there instead (`cp -rL`)"
    )


def refuse_bombs(folder: Path, shown: str) -> None:
    """Raises ModelLoadError for pickled weights that are larger than their file: compressed ones.

    Torch writes weights as they are.
    """
    for path in sorted(folder.glob("*.bin")):
        if not zipfile.is_zipfile(path):
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(part.file_size for part in archive.infolist())
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise ModelLoadError(
                f"{shown}: {path.name} is damaged ({error}); copy or save the model again"
            ) from None
        if size > path.stat().st_size:
            raise ModelLoadError(
                f"{shown}: {path.name} would become {size:,} bytes, expected weights that are not "
                "compressed; save the model as safetensors"
            )
