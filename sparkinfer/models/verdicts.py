"""What the gate decided before, kept in the cache folder of each node.

A verdict holds for the same files, options, versions of libraries and model of device; it is taken
again for a job whose texts are no longer than those it was found with. What is in memory is looked
at each time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sparkinfer import __version__
from sparkinfer.logs import get_logger
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.gate import Verdict
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.sources import cache_folder
from sparkinfer.storage import replace_text
from sparkinfer.workers.devices import device_model
from sparkinfer.workers.slot import WorkerSlot

logger = get_logger(__name__)

FOLDER = "verdicts"
"""Of the cache folder."""

REJECTED_S = 7 * 24 * 3600.0
"""For so long a way that was rejected is not tried again: it may have been for a full disk."""

_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "numpy", "deepspeed", "accelerate"),
    *("openvino", "onnxruntime", "onnx", "vllm"),
)
"""Whose versions count; one that is not there may be later."""


@dataclass(frozen=True)
class _Kept:
    """A verdict with what it was found for.

    Attributes:
        verdict: as JSON values.
        longest_text: see `RowsAhead`.
        is_measured: whether ways were measured.
    """

    verdict: Mapping[str, Any]
    longest_text: int | None
    is_measured: bool


class VerdictMemory:
    """The verdict on one model on this node.

    Args:
        fingerprint: of the model's files.
        options: how it is run.
        slot: what the worker has been given.
    """

    def __init__(self, fingerprint: str, options: ModelOptions, slot: WorkerSlot) -> None:
        self._options = options
        key = json.dumps(_key(fingerprint, options, slot), sort_keys=True, default=repr)
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        self._path = cache_folder(options.loading) / FOLDER / f"{name}.json"

    def recall(self, ahead: RowsAhead, wants_speed: bool) -> Verdict | None:
        """Returns the verdict if there is one that holds for a job, else None.

        Args:
            ahead: what is known of the job.
            wants_speed: whether it must have been measured.
        """
        kept = self._read() if self._options.gate.remember else None
        if kept is None or (wants_speed and not kept.is_measured):
            return None
        if kept.longest_text is not None and (
            ahead.longest_text is None or ahead.longest_text > kept.longest_text
        ):
            return None
        try:
            verdict = _restored(kept.verdict)
        except (TypeError, ValueError, KeyError):
            return None
        if self._options.way not in (None, verdict.accepted):
            return None
        return replace(verdict, is_remembered=True)

    def keep(self, verdict: Verdict, ahead: RowsAhead) -> None:
        """Keeps a verdict in place of an earlier one; one that cannot be written is not kept."""
        if not self._options.gate.remember:
            return
        kept = _Kept(asdict(verdict), ahead.longest_text, bool(verdict.speeds))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(str(self._path), json.dumps(asdict(kept)))
        except (OSError, TypeError) as error:
            logger.warning("what the gate found is not kept in %s: %s", self._path.parent, error)

    def _read(self) -> _Kept | None:
        try:
            kept = _Kept(**json.loads(self._path.read_text(encoding="utf-8")))
            age_s = time.time() - self._path.stat().st_mtime
            return None if kept.verdict["rejected"] and age_s > REJECTED_S else kept
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _key(fingerprint: str, options: ModelOptions, slot: WorkerSlot) -> dict[str, Any]:
    """Returns all that a verdict depends on, as JSON values."""
    return {
        "fingerprint": fingerprint,
        "settings": options.settings(),
        "dtype": options.dtype,
        "acceleration": options.acceleration,
        "gate": asdict(options.gate),
        "loading": options.loading.trust_remote_code,
        "deepspeed": asdict(options.deepspeed),
        "parallel": asdict(options.parallel),
        "device": device_model(slot.device),
        "devices": 1 + len(slot.others),
        "cores": slot.cores,
        "versions": {name: _version(name) for name in _LIBRARIES} | {"sparkinfer": __version__},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _restored(values: Mapping[str, Any]) -> Verdict:
    """Returns a verdict from its JSON values."""
    known = {field.name: values[field.name] for field in fields(Verdict)}
    return Verdict(
        **known
        | {
            "accepted": Acceleration(**values["accepted"]),
            "layout": Layout(**{**values["layout"], "resets": tuple(values["layout"]["resets"])}),
            "labels": tuple(values["labels"]),
            "rejected": tuple((name, why) for name, why in values["rejected"]),
            "speeds": tuple((name, rate) for name, rate in values["speeds"]),
        }
    )
