"""Gives a JVM that starts its Spark settings by a file, since everybody can read a command line.

`spark-submit --properties-file` reads a file in place of the cluster's `spark-defaults.conf`. The
file therefore begins with what that one holds; of two lines for one setting the last counts.
"""

from __future__ import annotations

import os
import shlex
import string
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SUBMIT_ARGS = "PYSPARK_SUBMIT_ARGS"
_OPTION = "--properties-file"
_PLAIN = frozenset(f"{string.ascii_letters}{string.digits}._-/".encode())


@contextmanager
def properties_file(settings: Mapping[str, str]) -> Iterator[None]:
    """Has a JVM that pyspark starts meanwhile take the settings, over those of the cluster.

    What PYSPARK_SUBMIT_ARGS sets stays in effect. The file is this user's alone and is removed at
    the end.
    """
    given = os.environ.get(SUBMIT_ARGS)
    arguments, own = _without_file(shlex.split(given or "pyspark-shell"))
    before = own or _defaults_file()
    handle, name = tempfile.mkstemp(prefix="sparkinfer-", suffix=".conf")  # of mode 600
    try:
        with os.fdopen(handle, "wb") as file:
            if before is not None:
                file.write(before.read_bytes() + b"\n\n")  # the last line may end in a backslash
            file.write(as_properties(settings).encode("ascii"))
        os.environ[SUBMIT_ARGS] = shlex.join([_OPTION, name, *arguments])
        yield
    finally:
        Path(name).unlink()
        os.environ.pop(SUBMIT_ARGS)
        if given is not None:
            os.environ[SUBMIT_ARGS] = given


def as_properties(settings: Mapping[str, str]) -> str:
    """Returns settings as lines of a Java properties file, in ASCII."""
    return "".join(f"{_escaped(name)}={_escaped(value)}\n" for name, value in settings.items())


def _escaped(text: str) -> str:
    r"""Returns a text with everything that could have a meaning in the file as `\uXXXX`."""
    units = text.encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(
        chr(code)
        if code < 128 and (chr(code).isalnum() or chr(code) in "._-/")
        else f"\\u{code:04x}"
        for code in codes
    )


def _without_file(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Returns the arguments of spark-submit without a properties file, and that file."""
    if _OPTION not in arguments:
        return arguments, None
    place = arguments.index(_OPTION)
    return arguments[:place] + arguments[place + 2 :], Path(arguments[place + 1])


def _defaults_file() -> Path | None:
    """Returns the cluster's settings, None if there are none.

    Source: `getDefaultPropertiesFile` of Spark's Utils, and bin/load-spark-env.sh.
    """
    from pyspark.find_spark_home import _find_spark_home

    home = _find_spark_home()  # type: ignore[no-untyped-call, unused-ignore]
    file = Path(os.environ.get("SPARK_CONF_DIR") or f"{home}/conf", "spark-defaults.conf")
    return file if file.is_file() else None
