"""Which files of a model matter, whether they may be loaded, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.digests import FileDigests
from sparkinfer.models.screening import (
    refuse_foreign_kernels,
    refuse_foreign_tokenizer,
    refuse_impossible,
    refuse_outside,
)
from sparkinfer.option_groups import LoadingConfig
from sparkinfer.workers.steps import step

_TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template.*"),
    *("*vocab*.json", "*vocab*.txt", "merges.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json"),
    *("bpe.codes", "dict.txt", "emoji.json", "byte_maps.json", "normalizer.json", "word_*.json"),
    "prophetnet.tokenizer",
)
"""Patterns of what tokenizers read. Source: every `VOCAB_FILES_NAMES` of transformers 5."""

_CODE_FILES = ("*.py", "*.json", "*.txt")
"""What a model's own Python code may read, beyond the known names."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git keeps elsewhere. Source: the specification of Git LFS."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""How the names of pickled weights end."""

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


Look = Callable[[str], tuple[Iterable[str], Iterable[str]]]
"""Returns the names of the files and of the folders in one of a model's folders.

That is given by its path in the model's own, which is the empty text, and ends in a slash."""


@dataclass(frozen=True)
class Listing:
    """The files of a model, local or remote, by their paths in its folder."""

    shown: str
    names: frozenset[str]
    read: Callable[[str], bytes]

    def matching(self, *patterns: str) -> set[str]:
        """Returns the names that match any of the patterns, folder by folder."""
        return {name for name in self.names if matches(name, patterns)}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Returns whether a path matches any of the patterns; a `*` matches no slash."""
    parts = name.split("/")
    split = (pattern.split("/") for pattern in patterns)
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)) for wanted in split
    )


def names_in(look: Look, patterns: Sequence[str], at: str = "") -> Iterator[str]:
    """Yields the files directly in a model's folder, and those of the folders that patterns name.

    Others, such as a training's checkpoints, are not looked at.
    """
    files, folders = look(at)
    yield from (at + name for name in files)
    split = [pattern.partition("/") for pattern in patterns]
    for name in folders:
        inner = [rest for first, _, rest in split if rest and fnmatchcase(name, first)]
        if inner:
            yield from names_in(look, inner, f"{at}{name}/")


def look_in(folder: Path, shown: str) -> Look:
    """Returns what lists a local folder, and raises for links that lead out of it."""

    def look(at: str) -> tuple[list[str], list[str]]:
        inner = folder / at
        refuse_outside(inner, folder, shown)
        entries = list(inner.iterdir())
        folders = [path.name for path in entries if path.is_dir()]
        return [path.name for path in entries if path.is_file()], folders

    return look


def fingerprint(
    folder: Path,
    shown: str,
    loading: LoadingConfig,
    files: Sequence[str] = (),
    kept: Path | None = None,
) -> str:
    """Returns the sha256 over names and contents of the files that matter, after checking them.

    Args:
        folder: with the files.
        shown: the model, for messages.
        loading: what is allowed.
        files: patterns of files that matter beside those that transformers reads.
        kept: see `FileDigests`.

    Raises:
        ModelLoadError: the files are incomplete or not allowed, or one cannot be read.
    """
    total, digests = hashlib.sha256(), FileDigests(kept)
    for name in select_files(_list_folder(folder, shown, files), loading, files):
        file = folder / name
        digest = digests.known(file)
        if digest is None:
            try:
                with step(f"reading {file}"):
                    _refuse_pointer(_start(file), name, shown)
                    digest = digests.read(file)
            except OSError as error:
                raise ModelLoadError(f"{shown}: {name} cannot be read ({error.strerror})") from None
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """Returns the sha256 over the files that tokenizers read, where they make a difference."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if any(fnmatchcase(file.name, pattern) for pattern in _TOKENIZER_FILES):
            content = file.read_bytes()
            if file.name == "tokenizer_config.json":
                content = _without_labels(content)
            total.update(f"{file.name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def _without_labels(tokenizer_config: bytes) -> bytes:
    """Returns a tokenizer's configuration without what says only where it is from, and its limit.

    The limit with which texts are really cut is known apart.
    """
    settings = json.loads(tokenizer_config)
    for name in ("name_or_path", "_name_or_path", "model_max_length", "tokenizer_file"):
        settings.pop(name, None)
    return json.dumps(settings, sort_keys=True).encode()


def _start(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(len(_LFS_POINTER))


def _refuse_pointer(start: bytes, name: str, shown: str) -> None:
    if start == _LFS_POINTER:
        raise ModelLoadError(
            f"{shown}: {name} is a Git LFS pointer, expected the file it points to; run "
            "`git lfs pull` in the copy of the repository, or download the model again"
        )


def _list_folder(folder: Path, shown: str, files: Sequence[str]) -> Listing:
    if not folder.is_dir():
        found = "it is a file" if folder.exists() else f"there is no folder {str(folder)!r}"
        raise ModelLoadError(
            f"{shown}: {found}; expected a folder that holds config.json, weights and tokenizer"
        )
    try:
        names = frozenset(names_in(look_in(folder, shown), files))
    except OSError as error:
        raise ModelLoadError(f"{shown}: folder cannot be read ({error.strerror})") from None
    return Listing(shown, names, lambda name: (folder / name).read_bytes())


def select_files(files: Listing, loading: LoadingConfig, further: Sequence[str] = ()) -> list[str]:
    """Returns the names of the files that matter, sorted; raises if the model cannot be loaded.

    Args:
        files: all there are.
        loading: what is allowed.
        further: patterns of the files that a task reads beside the model's own.
    """
    config = _check_config(files, loading)
    tokenizer = files.matching(*_TOKENIZER_FILES)
    if not tokenizer:
        raise ModelLoadError(
            f"{files.shown}: no tokenizer files, expected tokenizer.json, tokenizer_config.json, "
            "vocab.txt, spiece.model or the like; add them with `tokenizer.save_pretrained(...)`"
        )
    if "tokenizer_config.json" in files.names and not loading.trust_remote_code:
        refuse_foreign_tokenizer(_read_json(files, "tokenizer_config.json"), files.shown)
    chosen = tokenizer | (files.names & {"config.json", "generation_config.json"})
    if loading.trust_remote_code:
        chosen |= files.matching(*_CODE_FILES) - files.matching("*.index.json")
    chosen |= _weights(files, config, loading)
    return sorted(chosen | _further_files(files, further, loading))


def _further_files(files: Listing, patterns: Sequence[str], loading: LoadingConfig) -> set[str]:
    """Returns the files that match; of weights, the safetensors where a folder has both."""
    found = files.matching(*patterns)
    safe = {_folder_of(name) for name in found if name.endswith(".safetensors")}
    pickles = {name for name in found if name.endswith(_PICKLED)}
    needed = {name for name in pickles if _folder_of(name) not in safe}
    _refuse_pickles(needed, files.shown, loading)
    return found - (pickles - needed)


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _check_config(files: Listing, loading: LoadingConfig) -> dict[str, Any]:
    """Returns the content of config.json."""
    if "adapter_config.json" in files.names:
        raise ModelLoadError(
            f"{files.shown}: an adapter (adapter_config.json), expected a full model; merge it "
            "into its base with `merge_and_unload()` and save the result"
        )
    if "MLmodel" in files.names and "config.json" not in files.names:
        raise ModelLoadError(
            f"{files.shown}: an MLflow model (MLmodel), which is read from a folder or by its URI; "
            "give models:/NAME/VERSION or runs:/RUN/PATH, or copy it to a folder"
        )
    if "config.json" not in files.names:
        present = ", ".join(sorted(files.names)[:5]) or "nothing"
        raise ModelLoadError(
            f"{files.shown}: no config.json (found: {present}), expected a model saved with "
            "`save_pretrained`; give the folder that holds config.json"
        )
    config = _read_json(files, "config.json")
    refuse_impossible(config, files.shown)
    if not loading.trust_remote_code:
        refuse_foreign_kernels(config, files.shown)
    if "auto_map" in config and not loading.trust_remote_code and not _is_known(config):
        raise ModelLoadError(
            f"{files.shown}: config.json names custom Python code (auto_map) for the model_type "
            f"{config.get('model_type')!r}, which transformers does not know; the code is not run "
            "unless trusted: read it, then pass --set loading.trust_remote_code=true"
        )
    return config


def _is_known(config: dict[str, Any]) -> bool:
    """Returns whether transformers has code of its own for this kind of model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES


def _weights(files: Listing, config: dict[str, Any], loading: LoadingConfig) -> set[str]:
    """Returns the weight files that transformers would load, safetensors first."""
    named = config.get("transformers_weights")
    candidates = (str(named),) if named else (*_SAFETENSORS, *_PICKLES)
    name = next((name for name in candidates if name in files.names), None)
    if name is None:
        raise ModelLoadError(
            f"{files.shown}: no weights, expected {named or ' or '.join(_SAFETENSORS)}; save the "
            "model with `save_pretrained`, or complete the copy"
        )
    chosen = {name} | (_shards(files, name) if name.endswith(".index.json") else set())
    safe = (".safetensors", ".safetensors.index.json")
    _refuse_pickles((name for name in chosen if not name.endswith(safe)), files.shown, loading)
    return chosen


def _refuse_pickles(names: Iterable[str], shown: str, loading: LoadingConfig) -> None:
    pickles = sorted(names)
    if pickles and not loading.allow_pickle_weights:
        raise ModelLoadError(
            f"{shown}: weights only as a pickle ({pickles[0]}), which can run code when loaded; "
            "save the model as safetensors, or if you trust its origin pass "
            "--set loading.allow_pickle_weights=true"
        )


def _shards(files: Listing, index: str) -> set[str]:
    weight_map = _read_json(files, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{files.shown}: {index} has no weight_map; save the model again")
    shards = {str(name) for name in weight_map.values()}
    # Comparing with the listing also rejects names that lead out of the folder.
    if absent := sorted(shards - files.names):
        raise ModelLoadError(
            f"{files.shown}: {index} names {absent[0]}, which is missing ({len(absent)} of "
            f"{len(shards)} shards missing); complete the copy"
        )
    return shards


def _read_json(files: Listing, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = _parsed(lambda: files.read(name), name, files.shown, dict)
    return loaded


def read_json(folder: Path, name: str, shown: str, kind: type = dict) -> Any:
    """Returns the content of a JSON file in a model's folder.

    Args:
        folder: the model's.
        name: the file's path in it.
        shown: the model, for messages.
        kind: what it must hold, `dict` or `list`.

    Raises:
        ModelLoadError: it cannot be read, or holds something else.
    """
    return _parsed((folder / name).read_bytes, name, shown, kind)


def _parsed(read: Callable[[], bytes], name: str, shown: str, kind: type) -> Any:
    try:
        content = read()
        _refuse_pointer(content[: len(_LFS_POINTER)], name, shown)
        loaded = json.loads(content)
    except OSError as error:
        raise ModelLoadError(f"{shown}: {name} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ModelLoadError(
            f"{shown}: {name} is not valid JSON ({error}); copy or save the model again"
        ) from None
    except RecursionError:
        raise ModelLoadError(
            f"{shown}: {name} is nested too deeply; copy or save the model again"
        ) from None
    if not isinstance(loaded, kind):
        expected = "object" if kind is dict else "array"
        raise ModelLoadError(f"{shown}: {name} holds no JSON {expected}; save the model again")
    return loaded
