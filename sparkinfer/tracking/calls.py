"""Calls to a tracking server that may be slow, or gone: short ones, and never waited for long."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sparkinfer.messages import first_line
from sparkinfer.redaction import without_secrets

REQUEST_S = 5
"""Seconds after which one request to a server over HTTP is given up."""

STEPS_S = 20.0
"""Seconds after which steps are no longer waited for, whatever a store is at."""

BRIEF = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_S), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""MLflow reads both at each request; its own are minutes, with a log line for each retry."""

Step = tuple[str, Callable[[], object]]
"""What is done, in words, and what does it."""


@contextmanager
def brief_requests() -> Iterator[None]:
    """Has MLflow give up soon, while the context is open."""
    before = {name: os.environ.get(name) for name in BRIEF}
    os.environ.update(BRIEF)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def try_steps(steps: Sequence[Step], seconds: float = STEPS_S) -> dict[str, str]:
    """Takes steps one after the other and returns those that failed, with the reason.

    A server that cannot be reached is not asked again, so the steps after that fail as well.

    Args:
        steps: each may raise anything.
        seconds: after which they are no longer waited for.
    """
    failed = {what: f"no answer within {seconds:g} s" for what, _ in steps}

    def take() -> None:
        for number, (what, step) in enumerate(steps):
            try:
                step()
            except Exception as error:  # of each kind of store
                failed[what] = without_secrets(first_line(error))
                if is_unreachable(error):
                    failed.update((later, failed[what]) for later, _ in steps[number + 1 :])
                    return
            else:
                del failed[what]

    # In a thread, as not every store lets its calls be limited; a daemon, as it may never end.
    thread = threading.Thread(target=take, name="sparkinfer-mlflow", daemon=True)
    with brief_requests():
        thread.start()
        thread.join(seconds)
    return dict(failed)


def is_unreachable(error: BaseException | None) -> bool:
    """Returns whether an error, or what led to it, is that a server does not answer."""
    from requests import exceptions

    while error is not None:
        if isinstance(error, exceptions.ConnectionError | exceptions.Timeout):
            return True
        error = error.__cause__ or error.__context__
    return False
