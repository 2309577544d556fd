"""Collections of Chroma, in a folder that this process opens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import numpy.typing as npt
from chromadb.errors import ChromaError, InternalError, NotFoundError

from sparkinfer.exceptions import ConfigError, OutputError
from sparkinfer.messages import first_line
from sparkinfer.sinks.vectors.base import (
    About,
    Neighbour,
    RepeatedKeyError,
    StoreAwayError,
    VectorRows,
)
from sparkinfer.sinks.vectors.uri import StoreUri

ABOUT = "sparkinfer"
"""Name under which a collection keeps what there is to know about it."""

CHUNK = "sparkinfer_chunk"
"""Name under which a vector keeps the number of its chunk."""

RESERVED = ("chroma:", "#", "$")
"""How the names of metadata do not begin: Chroma drops the first without a word."""

DATABASE = "chroma.sqlite3"
"""File that is in every folder of Chroma's."""


class ChromaStore:
    """A collection in a folder; see `VectorStore`.

    Args:
        uri: where it is.
    """

    def __init__(self, uri: StoreUri) -> None:
        self._uri = uri
        self._folder = Path(uri.place)
        self._opened: Any = None

    def look(self) -> About | None:
        """Returns what is kept about the collection; see `VectorStore`."""
        if not (self._folder / DATABASE).is_file():
            self._refuse_folder()
            return None
        with self._errors():
            try:
                collection = self._collection()
            except NotFoundError:
                return None
        text = (collection.metadata or {}).get(ABOUT)
        if text is None:
            raise OutputError(
                f"{self._uri} holds vectors that no run put there; name another collection"
            )
        return About.of_json(text, str(self._uri))

    def refuse_names(self, metadata: Sequence[str]) -> None:
        """Raises ConfigError for names that Chroma drops, or that are ours."""
        for name in metadata:
            if name in ("", CHUNK) or name.startswith(RESERVED):
                raise ConfigError(
                    f"vectors.metadata: {self._uri} cannot store a field named {name!r}; rename "
                    f"it to another than {CHUNK!r} that is not empty and does not begin with "
                    "chroma:, # or $, or leave it out"
                )

    def make(self, about: About) -> None:
        """Makes the collection, in place of one of the same name; see `VectorStore`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._errors():
            with suppress(NotFoundError):
                self._client.delete_collection(self._uri.name)
            self._client.create_collection(
                self._uri.name,
                metadata={ABOUT: about.to_json()},
                configuration={"hnsw": {"space": about.distance}},
                embedding_function=None,
            )

    def write(self, about: About, chunk: int, rows: VectorRows) -> None:
        """Puts rows into the collection; see `VectorStore`."""
        with self._errors():
            collection = self._mine(about)
            step = self._client.get_max_batch_size()
            for start in range(0, len(rows.ids), step):
                self._write_some(collection, about, chunk, rows, slice(start, start + step))
            for start in range(0, len(rows.gone), step):
                collection.delete(list(rows.gone[start : start + step]), where={CHUNK: chunk})

    def _write_some(
        self, collection: Any, about: About, chunk: int, rows: VectorRows, some: slice
    ) -> None:
        ids = list(rows.ids[some])
        if about.key is not None:
            _refuse_others(collection, about.key, chunk, ids)
        # What is not named stays as it was, so nulls are named.
        metadata = [{**one, CHUNK: chunk} for one in rows.metadata[some]]
        collection.upsert(ids, embeddings=rows.vectors[some], metadatas=metadata)

    def nearest(self, about: About, vector: npt.NDArray[np.float32], k: int) -> list[Neighbour]:
        """Returns the nearest of the collection; see `VectorStore`."""
        with self._errors():
            found = self._mine(about).query(
                query_embeddings=vector[None], n_results=k, include=["metadatas", "distances"]
            )
        [ids], [metadata], [distances] = found["ids"], found["metadatas"], found["distances"]
        return [
            Neighbour(name, _distance(about.distance, distance), _without_chunk(one))
            for name, distance, one in zip(ids, distances, metadata, strict=True)
        ]

    def count(self) -> int:
        """Returns the number of vectors; see `VectorStore`."""
        with self._errors():
            return int(self._collection().count())

    def close(self) -> None:
        """Releases the folder; see `VectorStore`."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    @property
    def _client(self) -> Any:
        if self._opened is None:
            # With the settings as they are: in one process all clients of a folder have the same.
            self._opened = chromadb.PersistentClient(self._uri.place)
        return self._opened

    def _collection(self) -> Any:
        return self._client.get_collection(self._uri.name, embedding_function=None)

    def _mine(self, about: About) -> Any:
        """Returns the collection; raises OutputError if it is another by now."""
        try:
            collection = self._collection()
        except NotFoundError:
            raise _taken(self._uri) from None
        if (collection.metadata or {}).get(ABOUT) != about.to_json():
            raise _taken(self._uri)
        return collection

    def _refuse_folder(self) -> None:
        """Raises OutputError unless Chroma can make its files in the folder."""
        nearest = next(one for one in (self._folder, *self._folder.parents) if one.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise OutputError(
                f"{self._uri}: {str(nearest)!r} is no folder that can be written; name another"
            )
        if nearest == self._folder and any(self._folder.iterdir()):
            raise OutputError(
                f"{self._uri}: the folder holds something else than Chroma's files; name another"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Says of Chroma's errors whether asking again may help."""
        try:
            yield
        except InternalError as error:  # of its database and files
            raise StoreAwayError(first_line(error)) from error
        except (ChromaError, ValueError, TypeError) as error:
            raise OutputError(
                f"{self._uri} rejects the rows ({first_line(error)}); name another "
                "collection, or leave out the metadata that it does not take"
            ) from error


def _refuse_others(collection: Any, key: str, chunk: int, ids: Sequence[str]) -> None:
    """Raises RepeatedKeyError if one of the ids is there and is of another chunk."""
    found = collection.get(ids=list(ids), include=["metadatas"])
    for name, metadata in zip(found["ids"], found["metadatas"], strict=True):
        if metadata[CHUNK] != chunk:
            raise RepeatedKeyError(f"{key}={name!r} is in chunks {metadata[CHUNK]} and {chunk}")


def _taken(uri: StoreUri) -> OutputError:
    return OutputError(
        f"{uri} was recreated or removed by something else meanwhile; make sure that nothing "
        "else changes it"
    )


def _distance(kind: str, given: float) -> float:
    """Returns a distance as `Neighbour` has it: Chroma's are squared, or shifted by one."""
    if kind == "l2":
        return float(np.sqrt(max(given, 0.0)))
    return given - 1.0 if kind == "ip" else given


def _without_chunk(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != CHUNK}
