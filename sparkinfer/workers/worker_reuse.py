"""Makes cheap what Spark does in a Python worker before and after every task.

A worker that scores serves many tasks. With torch and a model loaded, what Spark does between two
tasks takes longer than reading the rows of a chunk.
"""

from __future__ import annotations

import gc
import sys
import zipimport
from pathlib import Path


def settle() -> None:
    """Tells the process that what is loaded now will stay.

    After a task Spark has the garbage collector walk over all objects (pyspark.daemon): those that
    exist now are excluded from here on. Before a task it invalidates the caches of all module
    finders (pyspark.worker), for which Python 3.11 reads pyspark's zip file again, once per
    package. These finders are dropped here; a later import that needs one creates it again.
    """
    gc.collect()
    gc.freeze()
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter) and _is_sparks(finder.archive):
            sys.path_importer_cache.pop(path, None)


def _is_sparks(archive: str) -> bool:
    return Path(archive).name.startswith(("pyspark", "py4j"))


def unsettle() -> None:
    """Lets the garbage collector free what was loaded, before it is released."""
    gc.unfreeze()


def settle_or_unsettle(is_kept: bool) -> None:
    """Settles once something large is kept in this process, and unsettles before its release."""
    if is_kept:
        settle()
    else:
        unsettle()
