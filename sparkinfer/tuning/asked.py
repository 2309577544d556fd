"""Which settings there are to choose from."""

from __future__ import annotations

from dataclasses import replace

from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.gate import candidates
from sparkinfer.models.options import ModelOptions
from sparkinfer.tuning.found import Setting
from sparkinfer.workers.devices import native_dtypes


def asked_ways(options: ModelOptions, device: str) -> list[Acceleration]:
    """Returns the ways that a run with these options might take, the preferred one first.

    In every number format that the device computes natively, and in float32, if none is given.
    Plain float32 is among them only where it is asked for.
    """
    dtypes = [options.dtype]
    if options.dtype == "auto":
        dtypes = list(dict.fromkeys([*native_dtypes(device), "float32"]))
    asked = [way for one in dtypes for way in candidates(replace(options, dtype=one), device)]
    # Of each number format but its own it is the last resort.
    last = [PLAIN] if PLAIN.dtype in dtypes and options.acceleration in ("auto", "none") else []
    ways = dict.fromkeys(way for way in asked if way != PLAIN)
    return list(dict.fromkeys([*ways, *last]))


def ways_of(options: ModelOptions, device: str) -> list[Acceleration]:
    """Returns the ways to try: those asked for, and plain float32."""
    return list(dict.fromkeys([*asked_ways(options, device), PLAIN]))


def splits_of(setting: Setting, cores: int, as_is: int) -> list[Setting]:
    """Returns a setting with the cores shared out in each way.

    Args:
        setting: of one process.
        cores: of the host.
        as_is: processes of a plain run; they come first.
    """
    counts = [count for count in range(1, cores + 1) if cores % count == 0]
    counts.sort(key=lambda count: count != as_is)
    return [replace(setting, processes=one, threads=cores // one) for one in counts]
