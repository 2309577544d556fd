"""The errors that sparkinfer raises on purpose.

SparkInferError                      the root: catch this one to catch them all
├── UsageError                       found before the job starts; change the call and run again
│   ├── ConfigError (ValueError)     an option is unknown, ill-typed or contradicts another
│   ├── InputError                   the input is missing, unreadable or lacks a column
│   │   └── MissingInputError        a path of it does not exist (files.listing)
│   ├── OutputError                  the output path cannot be used as asked
│   │   └── ResumeError              the output is from a run with other settings or another input
│   ├── ModelLoadError               the model's files are missing, unsafe or do not load
│   └── EngineUnavailableError (ImportError)   a package, Java or an accelerator is missing
├── JobError                         the job had started and failed
│   ├── RowConservationError         the rows written are not the rows read
│   ├── TooManyErrorsError           more rows have an error than allowed
│   ├── RankDiedError                a process of this machine was killed (batch_process.launchers)
│   ├── PausedError                  it was asked to end, and has committed (batch_process.pause)
│   ├── LeaseLostError               another run writes to the output now (jobs.lease)
│   └── ControlFolderError           driver and ranks cannot communicate (engines.horovod)
├── CallError                        a call of a batched function has no result; others may have one
│   ├── CallTimeoutError (TimeoutError)   it waited longer than it wanted to
│   ├── QueueFullError               too many items wait already; call again later
│   ├── BatcherClosedError           the batcher was closed before its turn
│   └── BatchOutputError (ValueError)     the function did not return one result for each item
├── RepeatedKeyError                 two rows have one key of a vector store (sinks.vectors.base)
├── RankTracebackError               in a cause: what a rank of that engine raised
└── DeviceError                      the accelerator's context is broken; the process must end

Each takes one message, so that it survives pickling from an executor to the driver. A message
holds the value that was given, what was expected and what to do; it is kept short and without
secrets here, whoever shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from sparkinfer.messages import MOST_CHARACTERS, shortened
from sparkinfer.redaction import without_secrets


class SparkInferError(Exception):
    """The root of every error that sparkinfer raises on purpose."""

    most_characters: ClassVar[int] = MOST_CHARACTERS

    def __init__(self, message: str) -> None:
        self.message = shortened(without_secrets(message), self.most_characters)
        super().__init__(self.message)


@contextmanager
def causes_without_secrets() -> Iterator[None]:
    """Replaces causes of an error, which other libraries raised, whose texts hold secrets."""
    try:
        yield
    except Exception as error:
        _replace_causes(error)
        raise


def _replace_causes(error: BaseException) -> None:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is None:
        return
    text = f"{type(cause).__name__}: {cause}"
    if without_secrets(text) == text:
        _replace_causes(cause)
    else:
        error.__cause__ = SparkInferError(text)


class UsageError(SparkInferError):
    """The call cannot work as it is; nothing has been started."""


class ConfigError(UsageError, ValueError):
    """An option is unknown, has the wrong type or contradicts another."""


class InputError(UsageError):
    """The input is missing, unreadable or lacks a column."""


class OutputError(UsageError):
    """The output path is in use, not a folder or not writable."""


class ResumeError(OutputError):
    """The output holds an earlier run that this one cannot resume."""


class ModelLoadError(UsageError):
    """The model's files are missing, unsafe under the current settings, or do not load."""


class EngineUnavailableError(UsageError, ImportError):
    """A package, a Java runtime or an accelerator that the job needs is missing."""


class JobError(SparkInferError):
    """The job had started and failed; the same command resumes it."""


class RowConservationError(JobError):
    """The number of rows written differs from the number of rows read."""


class TooManyErrorsError(JobError):
    """More rows have an error than allowed; the message quotes their errors."""


class CallError(SparkInferError):
    """A call of a batched function has no result."""


class CallTimeoutError(CallError, TimeoutError):
    """There was no result within the time that the call gave."""


class QueueFullError(CallError):
    """As many items wait as may; the call was not taken."""


class BatcherClosedError(CallError):
    """The batcher was closed; what waited gets no result."""


class BatchOutputError(CallError, ValueError):
    """A batched function did not return one result for each item."""


class DeviceError(SparkInferError):
    """The accelerator's context is broken; only a new process can use it again."""
