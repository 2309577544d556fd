"""What a processor gets of its rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkinfer.batch_process.reducers import Reducers
from sparkinfer.batch_process.uploads import Uploads
from sparkinfer.exceptions import ConfigError
from sparkinfer.logs import get_logger
from sparkinfer.messages import first_line, shown

if TYPE_CHECKING:
    import torch

logger = get_logger(__name__)

_NAMING = ("uuid", "id", "name", "version", "model_version", "model_name")
"""Attributes by which registries name a checkpoint or the version of a model."""


class TorchBatchProcessorContext:
    """The rank's device, its place, and what it hands in.

    Args:
        device: that the rank owns, such as `cpu` or `cuda:0`.
        rank: this rank, from 0.
        ranks: how many there are.
        hparams: as they were given to `torch_batch_process`.
        reducers: of this rank.
        uploads: of this rank.

    Attributes:
        device: as a `torch.device`.
    """

    def __init__(
        self,
        device: str,
        rank: int,
        ranks: int,
        hparams: Mapping[str, Any],
        reducers: Reducers,
        uploads: Uploads,
    ) -> None:
        import torch

        self.device = torch.device(device)
        self._rank, self._ranks = rank, ranks
        self._hparams = dict(hparams)
        self._reducers, self._uploads = reducers, uploads
        self._metrics: list[dict[str, Any]] = []
        self._uses: list[dict[str, Any]] = []
        self._warned: set[type] = set()

    def get_distributed_rank(self) -> int:
        """Returns this rank, from 0; rank 0 is the chief."""
        return self._rank

    def get_distributed_size(self) -> int:
        """Returns how many ranks there are."""
        return self._ranks

    def get_hparams(self) -> dict[str, Any]:
        """Returns the `hparams` that were given to `torch_batch_process`."""
        return self._hparams

    def to_device(self, data: Any, warned_types: set[type] | None = None) -> Any:
        """Returns data on the device; dicts, lists and tuples are gone through.

        Arrays become tensors. What has no `to` is returned as it is, with one warning for each
        type.

        Args:
            data: a tensor, an array, something else with a `to`, or these in dicts, lists, tuples.
            warned_types: of which nothing is said any more; None: those of this context.
        """
        import numpy as np
        import torch

        warned = self._warned if warned_types is None else warned_types
        if isinstance(data, Mapping):
            return {key: self.to_device(value, warned) for key, value in data.items()}
        if isinstance(data, list | tuple):
            moved = [self.to_device(value, warned) for value in data]
            return type(data)(*moved) if hasattr(data, "_fields") else type(data)(moved)
        if isinstance(data, np.ndarray) and data.dtype.kind in "biufc":
            return torch.from_numpy(data).to(self.device)
        if callable(getattr(data, "to", None)):
            return data.to(self.device)
        if type(data) not in warned:
            warned.add(type(data))
            logger.warning("to_device leaves what is of type %s as it is", type(data).__name__)
        return data

    def prepare_model_for_inference(self, model: torch.nn.Module) -> torch.nn.Module:
        """Returns the model, in evaluation mode and on the device."""
        model.eval()
        model.to(self.device)
        return model

    def upload_path(self) -> AbstractContextManager[Path]:
        """Returns a context of an empty folder, whose files are handed in when it ends.

        They are below `OUTPUT/rank_RANK` once the step is committed, and replace those of the same
        name.
        """
        return self._uploads.path()

    def get_tensorboard_path(self) -> Path:
        """Returns a folder; what it holds at a commit is in `OUTPUT/rank_RANK/tensorboard`."""
        return self._uploads.tensorboard_path()

    def wrap_reducer(
        self,
        reducer: Any,
        name: str | None = None,
        for_training: bool = True,
        for_validation: bool = True,
    ) -> Any:
        """Returns a reducer whose metrics are taken over all ranks, and kept in checkpoints.

        Args:
            reducer: a `MetricReducer`, or a function over a list of values; its reducer then has
                `update(value)`.
            name: of the metric; None: the reducer returns a dict of several.
            for_training: whether `reduce_metrics(for_training=True)` asks it.
            for_validation: whether `reduce_metrics(for_training=False)` asks it.

        Raises:
            ConfigError: it is no reducer, or was wrapped before.
        """
        return self._reducers.wrap(reducer, name, for_training, for_validation)

    def reduce_metrics(self, for_training: bool = False) -> dict[str, Any]:
        """Returns the reducers' metrics over the whole run; waits for nobody.

        This rank takes part with what it has collected so far, the others with what they had at
        the last checkpoint: in `on_finish` that is everything.

        Args:
            for_training: which reducers are asked.

        Raises:
            JobError: a reducer fails.
        """
        return self._reducers.reduce(for_training)

    def report_metrics(self, group: str, steps_completed: int, metrics: Mapping[str, Any]) -> None:
        """Keeps metrics in the run once the step is committed; see `read_batch_run`.

        Args:
            group: which they belong to; without a dot.
            steps_completed: at which step.
            metrics: by name; whatever JSON can hold. Scalars of numpy and torch become numbers.

        Raises:
            ConfigError: one of these is something else.
        """
        if not isinstance(group, str) or not group or "." in group:
            raise ConfigError(f"report_metrics: group={shown(group)}, expected a name without dots")
        if type(steps_completed) is not int or steps_completed < 0:
            raise ConfigError(
                f"report_metrics: steps_completed={shown(steps_completed)}, expected a whole "
                "number from 0"
            )
        values = {"metrics": _plain(metrics)}
        self._metrics.append({"group": group, "steps_completed": steps_completed, **values})

    def report_task_using_checkpoint(self, checkpoint: Any) -> None:
        """Notes in the run that it uses a checkpoint; see `read_batch_run`."""
        self._uses.append({"kind": "checkpoint", **_named(checkpoint)})

    def report_task_using_model_version(self, model_version: Any) -> None:
        """Notes in the run that it uses a version of a model; see `read_batch_run`."""
        self._uses.append({"kind": "model_version", **_named(model_version)})

    def take_reports(self) -> dict[str, list[dict[str, Any]]]:
        """Returns what was reported since the last call, by the names that `Proposal` has."""
        reports = {"metrics": self._metrics, "uses": self._uses}
        self._metrics, self._uses = [], []
        return reports


def _plain(metrics: Any) -> Any:
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise ConfigError(f"report_metrics: metrics={shown(metrics)}, expected a dict by name")
    try:
        return json.loads(json.dumps(dict(metrics), default=_scalar))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"report_metrics: metrics={shown(metrics)}: {first_line(error)}; expected what JSON "
            "can hold"
        ) from error


def _scalar(value: Any) -> Any:
    if callable(getattr(value, "item", None)):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no number")


def _named(used: Any) -> dict[str, Any]:
    """Returns how a registry names what is used."""
    if isinstance(used, str | int):
        return {"name": str(used)}
    found = {name: getattr(used, name, None) for name in _NAMING}
    named = {name: value for name, value in found.items() if isinstance(value, str | int)}
    model = getattr(getattr(used, "model", None), "name", None)
    if isinstance(model, str):
        named["model_name"] = model
    return named or {"name": shown(used)}
