"""A model's files as transformers loads them: configuration, tokenizer, module."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks import get_task
from sparkinfer.models.tokens import Encoder, length_limit, pads_batches


class Checkpoint:
    """A folder with a model's files, loaded when and as often as needed.

    A module is loaded in float32. Wrapping and casting change it in place, so a caller that does
    either uses `take_module`; the next call loads the module again.

    Args:
        path: the folder.
        options: task, length limit and what loading allows.
        device: torch device, such as `cpu` or `cuda:0`.
    """

    def __init__(self, path: Path, options: ModelOptions, device: str) -> None:
        self.path = path
        self.options = options
        self.device = device
        self.task = get_task(options.task)
        self._module: Any = None

    @cached_property
    def config(self) -> Any:
        """The model's configuration.

        Raises:
            ModelLoadError: it cannot be read.
        """
        return self._load("AutoConfig")

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer with its length limit.

        Raises:
            ModelLoadError: it cannot be read.
            ConfigError: `max_length` exceeds the model's limit.
        """
        tokenizer = self._load("AutoTokenizer")
        return Encoder(tokenizer, length_limit(tokenizer, self.config, self.options.max_length))

    @property
    def pads_batches(self) -> bool:
        """Whether rows of different length can share a batch."""
        return pads_batches(self.encoder.tokenizer, self.config)

    def module(self) -> Any:
        """Returns the plain module in float32; the caller must not change it."""
        if self._module is None:
            self._module = self._load_module()
        return self._module

    def take_module(self) -> Any:
        """Returns the plain module in float32; the caller may change it."""
        module, self._module = self.module(), None
        return module

    def pipeline(self, module: Any) -> Any:
        """Returns the transformers pipeline of the task around a module, on the device."""
        import torch
        import transformers

        if self.device.startswith("cuda"):
            torch.cuda.set_device(torch.device(self.device))
        return transformers.pipeline(
            self.task.pipeline,
            model=module,
            tokenizer=self.encoder.tokenizer,
            device=torch.device(self.device),
        )

    def _load_module(self) -> Any:
        loading = self.options.loading
        module, report = self._load(
            self.task.auto_class,
            use_safetensors=None if loading.allow_pickle_weights else True,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ModelLoadError(
                f"model {str(self.path)!r} has no weights for "
                f"{sorted(report['missing_keys'])[:3]}: they would be random; give a model that "
                f"was trained for {self.options.task!r}"
            )
        return module.float().eval()

    def _load(self, auto_class: str, **options: Any) -> Any:
        """Returns what a transformers class loads from the folder."""
        quiet_transformers()
        import transformers

        try:
            return getattr(transformers, auto_class).from_pretrained(
                self.path, trust_remote_code=self.options.loading.trust_remote_code, **options
            )
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
            reason = " ".join(str(error).split())[:500]
            raise ModelLoadError(f"model {str(self.path)!r} does not load: {reason}") from error


def quiet_transformers() -> None:
    """Keeps the library's progress bars and notices out of the run's output."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
