"""Whether more has changed than may have, for tests that compare outputs."""

from __future__ import annotations

import re

from sparkinfer.comparing.result import Comparison
from sparkinfer.exceptions import ConfigError, InputError

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


def share_of(percent: str) -> float:
    """Returns a share, 0 to 1, that is given as `P%`.

    Raises:
        ConfigError: it is not.
    """
    match = _PERCENT.fullmatch(percent.strip())
    if match is None or float(match[1]) > 100:
        raise ConfigError(
            f"fail_above={percent!r}: expected a share of rows from 0% to 100%, as 0.1%"
        )
    return float(match[1]) / 100


def is_within(found: Comparison, limit: float) -> bool:
    """Returns whether no larger share of the rows has another result.

    Raises:
        InputError: not all rows are there, or results are numbers that need not be the same.
    """
    unfinished = [side.output for side in (found.a, found.b) if not side.is_finished]
    if unfinished:
        raise InputError(
            f"fail_above: {' and '.join(unfinished)} is not finished, so not all rows are "
            "compared; finish it by its own command"
        )
    share = found.unlike_share
    if share is None:
        raise InputError(
            "fail_above: the results are numbers, of which none need be the same; look at the "
            "differences that --json prints"
        )
    return share <= limit
