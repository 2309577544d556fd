"""What Spark does in a Python worker before and after every task, made cheap.

A worker that scores serves many tasks. With torch and a model loaded, what Spark does between two
of them takes longer than reading the rows of a chunk.
"""

from __future__ import annotations

import gc
import sys
import zipimport
from pathlib import Path


def settle() -> None:
    """Tells the process that what is loaded now stays.

    After a task Spark has the garbage collector walk over all objects (pyspark.daemon): those that
    are here now are left out from now on. Before a task it has every finder of modules forget what
    it knows (pyspark.worker), for which Python 3.11 reads pyspark's zip file again, once for each
    of its packages. Such finders are made anew where a later import looks for one.
    """
    gc.collect()
    gc.freeze()
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter) and _is_sparks(finder.archive):
            sys.path_importer_cache.pop(path, None)


def _is_sparks(archive: str) -> bool:
    return Path(archive).name.startswith(("pyspark", "py4j"))


def unsettle() -> None:
    """Lets the collector have what was loaded, for it is to go."""
    gc.unfreeze()


def settle_or_unsettle(is_kept: bool) -> None:
    """Settles once something large is kept in this process, and unsettles before it goes."""
    if is_kept:
        settle()
    else:
        unsettle()
