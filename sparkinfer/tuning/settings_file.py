"""The settings that were found, as a file that `score --config` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from sparkinfer.models.backends.deepspeed import KERNELS
from sparkinfer.tuning.found import Findings


def options_of(findings: Findings, on_spark: bool) -> dict[str, Any]:
    """Returns the options by which a run takes the chosen setting.

    Args:
        findings: with it.
        on_spark: whether Spark says how many replicas there are, and gives each its cores.
    """
    setting = findings.chosen.setting
    found: dict[str, Any] = {"acceleration": setting.way.backend, "dtype": setting.way.dtype}
    if setting.way.variant == KERNELS:
        found["deepspeed"] = {"kernel_inject": True}
    if setting.batch_tokens != findings.default_tokens:
        found["batching"] = {"max_batch_tokens": setting.batch_tokens}
    if not findings.is_split_otherwise:
        return found
    if on_spark:
        found["spark_conf"] = {"spark.task.cpus": str(setting.threads)}
    else:
        found["num_workers"] = setting.processes
    return found


def as_yaml(options: Mapping[str, Any]) -> str:
    """Returns options as `score --config` takes them."""
    return yaml.safe_dump(dict(options), sort_keys=False)
