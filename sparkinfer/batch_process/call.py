"""What is checked of a call before anything is started."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Mapping
from typing import Any

from sparkinfer.batch_process.processor import TorchBatchProcessor
from sparkinfer.batch_process.rank import BatchPlan
from sparkinfer.batch_process.sharding import count_steps
from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import first_line, shown

ENGINES = ("local", "spark", "horovod")

DEFAULT_BATCH_SIZE = 1

_OURS = {
    "sampler": "the ranks share the batches among them",
    "batch_sampler": "the ranks share the batches among them",
}


def check_processor(kind: Any) -> None:
    """Raises ConfigError unless a class can process batches."""
    if not inspect.isclass(kind) or not callable(getattr(kind, "process_batch", None)):
        raise ConfigError(
            f"batch_processor_cls={shown(kind)}: expected a subclass of TorchBatchProcessor"
        )
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(f"{kind.__qualname__} lacks {' and '.join(missing)}; define it")
    if not issubclass(kind, TorchBatchProcessor):
        raise ConfigError(
            f"{kind.__qualname__} is no subclass of sparkinfer.TorchBatchProcessor; derive it from "
            "that"
        )
    _check_arguments(kind, "__init__", "context")
    _check_arguments(kind, "process_batch", "batch", "batch_idx")


def _check_arguments(kind: type, method: str, *names: str) -> None:
    """Raises ConfigError unless a method takes arguments of these names."""
    try:
        inspect.signature(getattr(kind, method)).bind(None, **dict.fromkeys(names))
    except TypeError as error:
        raise ConfigError(
            f"{kind.__qualname__}.{method}: {error}; it is called with "
            f"{' and '.join(f'{name}=' for name in names)}"
        ) from None


def check_dataset(dataset: Any) -> int:
    """Returns the length of a map-style dataset.

    Raises:
        ConfigError: it has none, or no `__getitem__`.
    """
    kind = type(dataset).__name__
    from torch.utils.data import IterableDataset

    if not hasattr(type(dataset), "__len__"):
        raise ConfigError(
            f"dataset of type {kind} has no __len__: without its length, its batches cannot be "
            "shared among ranks; give a map-style dataset, with __len__ and __getitem__"
        )
    if isinstance(dataset, IterableDataset) or not hasattr(type(dataset), "__getitem__"):
        raise ConfigError(
            f"dataset of type {kind} has no __getitem__: a rank reads only its own batches; give a "
            "map-style dataset, with __len__ and __getitem__"
        )
    return len(dataset)


def check_loader(given: Any, batch_size: Any) -> tuple[dict[str, Any], int, bool]:
    """Returns further arguments of the loader, the batch size, and whether a short batch is left.

    Raises:
        ConfigError: an argument contradicts how the ranks share the batches.
    """
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"dataloader_kwargs={shown(given)}: expected a dict")
    loader = dict(given or {})
    if loader.pop("shuffle", False):
        raise ConfigError(
            "dataloader_kwargs: shuffle must be false: a resumed run would not find the same rows "
            "in its batches; leave it out, or shuffle the dataset once with a fixed seed"
        )
    for name, reason in _OURS.items():
        if name in loader:
            raise ConfigError(f"dataloader_kwargs: {name} cannot be given: {reason}; remove it")
    if batch_size is not None and "batch_size" in loader:
        raise ConfigError(
            f"batch_size={shown(batch_size)} and dataloader_kwargs with batch_size="
            f"{shown(loader['batch_size'])}: it is given twice; give it once"
        )
    size = loader.pop("batch_size", None) if batch_size is None else batch_size
    size = DEFAULT_BATCH_SIZE if size is None else positive("batch_size", size)
    return loader, size, bool(loader.pop("drop_last", False))


def positive(name: str, value: Any) -> int:
    """Returns a whole number above 0.

    Raises:
        ConfigError: it is something else.
    """
    if type(value) is not int or value <= 0:
        raise ConfigError(f"{name}={shown(value)}: expected a whole number above 0")
    return value


def make_plan(
    rows: int, batch_size: int, drop_last: bool, ranks: int, interval: int, max_batches: int | None
) -> BatchPlan:
    """Returns how a dataset is gone through.

    `max_batches` that is not positive, or more than a rank has, is ignored with a warning.

    Raises:
        ConfigError: it is no whole number.
    """
    steps = count_steps(rows, batch_size, ranks)
    if max_batches is not None:
        if type(max_batches) is not int:
            raise ConfigError(f"max_batches={shown(max_batches)}: expected a whole number")
        if 0 < max_batches <= steps:
            steps = max_batches
        else:
            expected = "a number above 0" if max_batches <= 0 else f"at most {steps}"
            warnings.warn(
                f"max_batches={max_batches} is ignored: expected {expected}, the steps that each "
                "rank takes; the whole dataset is processed",
                stacklevel=4,
            )
    return BatchPlan(rows, batch_size, drop_last, ranks, steps, interval)


def settings_of(
    kind: type[TorchBatchProcessor], plan: BatchPlan, hparams: Mapping[str, Any], data: str
) -> dict[str, Any]:
    """Returns what a call must have in common with the run that it goes on with.

    Raises:
        ConfigError: JSON cannot hold the hparams.
    """
    return {
        "batch_processor_cls": f"{kind.__module__}.{kind.__qualname__}",
        "dataset": data,
        "dataset length": plan.rows,
        "batch_size": plan.batch_size,
        "drop_last": plan.drop_last,
        "num_workers": plan.ranks,
        "steps of each rank": plan.steps,
        "hparams (digest)": _digest(hparams),  # they may hold secrets
    }


def _digest(hparams: Any) -> str:
    if not isinstance(hparams, Mapping):
        raise ConfigError(f"hparams={shown(hparams)}: expected a dict by name")
    try:
        text = json.dumps(hparams, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hparams: {first_line(error)}; expected what JSON can hold") from error
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
