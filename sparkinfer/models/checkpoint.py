"""A model's files as transformers loads them: configuration, tokenizer, module."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.files import fingerprint
from sparkinfer.models.held_module import HeldModule
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.screening import refuse_bombs
from sparkinfer.models.sentence_files import MODULES
from sparkinfer.models.state import reset_before_each_batch
from sparkinfer.models.tasks import TASKS
from sparkinfer.models.tasks.base import ModelTask
from sparkinfer.models.tokens import Encoder, claimed_limit
from sparkinfer.workers.devices import use_gpu

_HEAD = re.compile(r"For[A-Z]\w*$|LMHeadModel$")
"""How transformers' classes with a head end. Source: its `MODEL_FOR_..._MAPPING_NAMES`."""


class Checkpoint:
    """A folder with a model's files, loaded when and as often as needed.

    Wrapping a module changes it in place, so a caller that does that uses `take_module`; the next
    call loads the module again.

    Args:
        path: the folder.
        options: task, length limit and what loading allows.
        device: torch device, such as `cpu` or `cuda:0`.
        max_length: tokens at which texts are truncated, as the gate found it; None before that:
            as the files claim it.
        layout: how batches are laid out, as the gate found it.
        others: further devices of the replica; see `WorkerSlot`.
        fingerprint: of the files, as a `ModelSource` has it; None: they are read for it if needed.

    Attributes:
        layout: as given, or as the gate has it followed.
        path: as given.
        options: as given.
        device: as given.
        others: as given.
        vocabulary: tokens that the model has, None if unknown or before it is loaded.
    """

    def __init__(
        self,
        path: Path,
        options: ModelOptions,
        device: str,
        max_length: int | None = None,
        layout: Layout | None = None,
        others: tuple[str, ...] = (),
        fingerprint: str | None = None,
    ) -> None:
        self.path = path
        self.options = options
        self.device = device
        self.others = others
        self._fingerprint = fingerprint
        self.layout = layout or Layout()
        self._max_length = max_length
        self.vocabulary: int | None = None
        self._module: Any = None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) over the model's files that matter."""
        if self._fingerprint is not None:
            return self._fingerprint
        shown = f"model {str(self.path)!r}"
        return fingerprint(self.path, shown, self.options.loading, self.options.files)

    @cached_property
    def config(self) -> Any:
        """The model's configuration.

        Raises:
            ModelLoadError: it cannot be read.
        """
        return self._load("AutoConfig")

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            ModelLoadError: it cannot be read.
        """
        return without_dropout(self._load("AutoTokenizer"))

    @cached_property
    def task(self) -> ModelTask:
        """What the model does, as it does it.

        Raises:
            ModelLoadError: the model does not do it, or its files do not say how.
            ConfigError: an option does not fit the model.
        """
        self._refuse_another_head()
        return self.options.task.of_model(self)

    @property
    def num_texts(self) -> int:
        """Texts of each row that are fed to it."""
        return len(self.options.texts)

    @property
    def max_length(self) -> int:
        """Tokens at which texts are truncated."""
        if self._max_length is None:
            # The task first: it may set the tokenizer up.
            limits = (self.task.most_tokens, claimed_limit(self.tokenizer, self.config))
            self._max_length = min(limit for limit in limits if limit is not None)
        return self._max_length

    @max_length.setter
    def max_length(self, tokens: int) -> None:
        self._max_length = tokens

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest sequence that the model sees: an input's and what is appended."""
        return self.max_length + self.task.appended_tokens

    @property
    def encoder(self) -> Encoder:
        """The tokenizer with its length limit and the padding of the layout.

        Raises:
            ModelLoadError: the tokenizer cannot be read.
        """
        layout = self.layout
        is_asked = self.options.max_length is not None
        side, pad_id = layout.padding_side, layout.pad_id
        return Encoder(self.tokenizer, self.max_length, side, pad_id, is_asked)

    def module(self) -> Any:
        """Returns the plain module in float32; the caller must not change it."""
        if self._module is None:
            self._module = self._load_module("float32")
        return self._module

    def release(self) -> None:
        """Releases the module, so that there is memory for another one."""
        self._module = None

    def follow(self, layout: Layout) -> None:
        """Has models be run in this layout; a module loaded before for another is released."""
        if layout.resets != self.layout.resets:
            self.release()
        self.layout = layout

    def take_module(self, dtype: str = "float32") -> Any:
        """Returns the plain module, loaded in a number format; the caller may change it.

        In whatever format, its weights are at no time in another one.
        """
        if dtype != "float32" or self.layout.resets:  # one that has run would put back its state
            self.release()
            return self._load_module(dtype)
        module, self._module = self.module(), None
        return module

    def pipeline(self, module: Any) -> Any:
        """Returns the transformers pipeline of the task around a module, on the device.

        If the installed transformers has none of that name, the module is held by `HeldModule`.
        """
        import torch
        import transformers

        device, name = torch.device(self.device), self.options.task.pipeline
        if device.type == "cuda":
            use_gpu(device)
        if name not in transformers.pipelines.get_supported_tasks():
            return HeldModule(module, device)
        return transformers.pipeline(name, model=module, tokenizer=self.tokenizer, device=device)

    def _refuse_another_head(self) -> None:
        """Raises ModelLoadError for a model that was trained to do something else.

        Its weights may fit all the same: the heads for whole texts and for single tokens often have
        the same names and sizes.
        """
        heads = self.options.task.heads
        named = getattr(self.config, "architectures", None) or ()
        others = [name for name in map(str, named) if _HEAD.search(name)]
        if heads and others and not any(name.endswith(heads) for name in others):
            fitting = sorted({one.name for one in TASKS.values() if others[0].endswith(one.heads)})
            advice = "name the task that the model was trained for"
            if fitting:
                advice = f"give --task {' or '.join(fitting)}"
            raise ModelLoadError(
                f"model {str(self.path)!r} is a {others[0]} (architectures in config.json), "
                f"expected one that ends with {' or '.join(heads)} for "
                f"task={self.options.task.name!r}; {advice}"
            )

    def _load_module(self, dtype: str) -> Any:
        import torch

        loading = self.options.loading
        refuse_bombs(self.path, f"model {str(self.path)!r}")
        module, report = self._load(
            self._class,
            use_safetensors=None if loading.allow_pickle_weights else True,
            output_loading_info=True,
            torch_dtype=getattr(torch, dtype),  # else it is that of the weights
        )
        missing = [key for key in sorted(report["missing_keys"]) if self._uses(key)]
        if missing:
            advice = f"give a model that was trained for {self.options.task.name!r}"
            if (self.path / MODULES).is_file():
                advice = "it is a model of sentence-transformers, give --task embedding"
            raise ModelLoadError(
                f"model {str(self.path)!r} has no weights for {missing[:3]}: they would be random; "
                f"{advice}"
            )
        if report["unexpected_keys"] and self._ignores_own_code:
            raise ModelLoadError(
                f"model {str(self.path)!r} names Python code of its own (auto_map) and has weights "
                f"that transformers' class does not use, {sorted(report['unexpected_keys'])[:3]}: "
                "it would score otherwise than with that code; read the code, then pass "
                "--set loading.trust_remote_code=true"
            )
        module = (module.float() if dtype == "float32" else module).eval()
        self.vocabulary = _embedded_tokens(module)
        if self.layout.resets:
            reset_before_each_batch(module, self.layout.resets)
        return module

    def _uses(self, weight: str) -> bool:
        return not any(fnmatchcase(weight, one) for one in self.options.task.unused_weights)

    @property
    def _class(self) -> str:
        return self.options.task.class_of(self.config)

    @property
    def _ignores_own_code(self) -> bool:
        own_code = getattr(self.config, "auto_map", None) or {}
        return self._class in own_code and not self.options.loading.trust_remote_code

    def _load(self, auto_class: str, **options: Any) -> Any:
        """Returns what a transformers class loads from the folder."""
        quiet_transformers()
        import transformers

        try:
            return getattr(transformers, auto_class).from_pretrained(
                self.path, trust_remote_code=self.options.loading.trust_remote_code, **options
            )
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
            shown = f"model {str(self.path)!r}"
            missing = missing_packages(self.path) if auto_class == "AutoTokenizer" else []
            if missing:
                raise ModelLoadError(
                    f"{shown}: its tokenizer is not in tokenizer.json, and the packages that read "
                    f"its own file are not installed; run pip install {' '.join(missing)} on every "
                    "node, or save the tokenizer with `save_pretrained` where it loads"
                ) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            if "weights_only" in reason:  # torch advises to switch its protection off
                raise ModelLoadError(
                    f"{shown}: its pickled weights hold something other than tensors, which could "
                    "run code and is not loaded; save the model as safetensors where it was made"
                ) from None
            if "ignore_mismatched_sizes" in reason:
                raise ModelLoadError(
                    f"{shown}: its weights have other sizes than config.json says; copy or save "
                    "the model again"
                ) from error
            if "trust_remote_code=True" in reason:
                raise ModelLoadError(
                    f"{shown} has Python code of its own (auto_map) that it does not load without, "
                    "which is not run unless trusted; read it, then pass "
                    "--set loading.trust_remote_code=true"
                ) from error
            raise ModelLoadError(f"{shown} does not load: {reason[:500]}") from error


def without_dropout(tokenizer: Any) -> Any:
    """Returns a tokenizer that gives a text the same tokens each time.

    A BPE may leave out merges by chance, which is for training; its file keeps that setting.
    """
    bpe: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(bpe, "dropout", None):
        bpe.dropout = None
    return tokenizer


def missing_packages(folder: Path) -> list[str]:
    """Returns the packages that reading a folder's tokenizer takes and that are not installed."""
    if (folder / "tokenizer.json").is_file():
        return []
    needed: list[str] = []
    for file in sorted(folder.iterdir()):
        if file.suffix == ".tiktoken" or (file.suffix == ".model" and _is_tiktoken(file)):
            needed.append("tiktoken")
        elif file.suffix in (".model", ".spm"):
            needed += ["sentencepiece", "protobuf"]
    return [package for package in dict.fromkeys(needed) if not _is_installed(package)]


def _is_tiktoken(file: Path) -> bool:
    """Returns whether a file holds tokens in base64 with their ranks, as tiktoken writes them."""
    with file.open("rb") as content:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+", content.readline(1000).strip()) is not None


def _is_installed(package: str) -> bool:
    try:
        return find_spec({"protobuf": "google.protobuf"}.get(package, package)) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _embedded_tokens(module: Any) -> int | None:
    """Returns the rows of a module's table of tokens, None if it has no such table."""
    try:
        weight = module.get_input_embeddings().weight
        return int(getattr(weight, "ds_shape", weight.shape)[0])  # of ZeRO's, which is elsewhere
    except (AttributeError, NotImplementedError):
        return None


def quiet_transformers() -> None:
    """Keeps the library's progress bars and notices out of the run's output."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
