"""Which libraries take part in a call, and in which versions, as far as this process knows."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from sparkinfer import __version__

ALWAYS = ("pyarrow", "numpy")
OF_MODELS = ("torch", "transformers", "tokenizers")
OF_ENGINES = {"pandas_udf": ("pyspark",), "horovod": ("pyspark", "horovod")}


def versions(engine: str, backends: Iterable[str], *, has_models: bool) -> dict[str, str]:
    """Returns the versions of Python, the package and libraries, by name.

    Args:
        engine: its name.
        backends: what runs the models.
        has_models: whether there are any.
    """
    names = [*ALWAYS, *(OF_MODELS if has_models else ()), *OF_ENGINES.get(engine, ()), *backends]
    found = {name: _version(name) for name in names}
    own = {"python": platform.python_version(), "sparkinfer": __version__}
    return own | {name: number for name, number in found.items() if number is not None}


def _version(name: str) -> str | None:
    loaded = getattr(sys.modules.get(name), "__version__", None)
    if isinstance(loaded, str):
        return loaded
    try:
        return version(name)
    except PackageNotFoundError:
        return None
