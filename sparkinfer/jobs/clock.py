"""The time of day, for people."""

from __future__ import annotations

from datetime import datetime, timezone


def utc_now() -> str:
    """Returns the current time in ISO 8601; no decision depends on it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
