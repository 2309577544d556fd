"""Vector stores. To add one, add a module and a line in `VECTOR_STORES`, and its form to `uri`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.sinks.vectors.base import VectorStore
from sparkinfer.sinks.vectors.uri import CHROMA, POSTGRESQL, StoreUri

VECTOR_STORES = {
    CHROMA: "sparkinfer.sinks.vectors.chroma:ChromaStore",
    POSTGRESQL: "sparkinfer.sinks.vectors.pgvector:PgVectorStore",
}
"""By the kind of its name: its class, as `package.module:Class`; imported on use."""


def open_store(uri: StoreUri) -> VectorStore:
    """Returns a store, which is not yet asked anything.

    Raises:
        EngineUnavailableError: a package that it needs is not installed.
    """
    home, _, name = VECTOR_STORES[uri.kind].partition(":")
    try:
        kind: Any = getattr(import_module(home), name)
    except ImportError as error:
        raise EngineUnavailableError(
            f"{uri} needs a package that is not installed ({error}); run pip install chromadb, or "
            "pip install 'psycopg[binary]' pgvector for PostgreSQL (the extra [vectordb])"
        ) from error
    store: VectorStore = kind(uri)
    return store
