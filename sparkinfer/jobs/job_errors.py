"""Errors after the start of a job are the job's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sparkinfer.exceptions import InputError, JobError, SparkInferError


@contextmanager
def job_errors() -> Iterator[None]:
    """Turns whatever is raised after the start into a JobError."""
    try:
        yield
    except InputError:  # found while the input was copied or cut: nothing has been scored
        raise
    except SparkInferError as error:
        if isinstance(error, JobError):
            raise
        raise JobError(error.message) from error
    except Exception as error:
        raise JobError(f"{type(error).__name__}: {error}") from error
