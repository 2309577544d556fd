"""Loggers whose lines hold no secrets, and no characters that would act on a terminal."""

from __future__ import annotations

import logging

from sparkinfer.messages import shortened
from sparkinfer.redaction import without_secrets
from sparkinfer.terminal import printable, printable_lines


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module; each module of the package takes its own here."""
    logger = logging.getLogger(name)
    logger.addFilter(_make_safe)
    return logger


def _make_safe(record: logging.LogRecord) -> bool:
    """Changes a record, for whatever handler it reaches; returns that it is to be logged."""
    record.msg, record.args = shortened(printable(without_secrets(record.getMessage()))), ()
    if record.exc_info:
        trace = logging.Formatter().formatException(record.exc_info)
        record.exc_text = printable_lines(without_secrets(trace))
    return True
