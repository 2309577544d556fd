"""What every way to fetch a model needs: local paths, and errors without secrets."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparkinfer.exceptions import EngineUnavailableError, ModelLoadError, SparkInferError
from sparkinfer.redaction import without_secrets
from sparkinfer.storage import mounted


def local_path(text: str) -> Path:
    """Returns an absolute path; `dbfs:/x` is where Databricks mounts it."""
    text = mounted(re.sub(r"^file:(//)?(?=/)", "", text))
    # Not resolve(): a mount point may be a link that leads elsewhere on another node.
    return Path(os.path.normpath(Path(text).expanduser().absolute()))


@contextmanager
def translated(shown: str, what: str) -> Iterator[None]:
    """Turns any error of the libraries that fetch into one of ours, without secrets."""
    try:
        yield
    except SparkInferError:
        raise
    except ImportError as error:
        raise EngineUnavailableError(f"{shown}: {reason_of(error)}") from None
    except Exception as error:
        message = f"{shown}: {what} ({reason_of(error)}); check name, connection and credentials"
        raise ModelLoadError(message) from None


def reason_of(error: Exception) -> str:
    """Returns what an error says, in one line and without secrets."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {without_secrets(text)[:300]}"


def node_name() -> str:
    """Returns the name of this machine."""
    return platform.node()
