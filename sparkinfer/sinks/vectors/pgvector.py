"""Tables of PostgreSQL with the extension pgvector.

A table has the columns `id`, `embedding`, `chunk` and `metadata`. What is kept about it is a row of
the table `sparkinfer_vectors` in its schema; whoever writes holds on to that row, so that nothing
of a run gets into the table after another run has recreated it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.types.json import Jsonb

from sparkinfer.exceptions import OutputError
from sparkinfer.messages import first_line
from sparkinfer.sinks.vectors.base import (
    About,
    Neighbour,
    RepeatedKeyError,
    StoreAwayError,
    VectorRows,
)
from sparkinfer.sinks.vectors.uri import StoreUri

ABOUT = "sparkinfer_vectors"
"""Table in which is kept what there is to know about others."""

INCOMING = "sparkinfer_incoming"
"""Temporary table in which rows wait within a transaction."""

MOST_DIMENSIONS = 16_000
"""Of a column of pgvector. Source: its documentation."""

OPERATORS = {"cosine": "<=>", "l2": "<->", "ip": "<#>"}

PATIENCE = {
    **{"connect_timeout": "10", "tcp_user_timeout": "60000"},
    **{"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"},
}
"""Options of a connection, unless the address has them: a server that is gone is noticed."""

LOCK_WAIT = "30s"
"""Time in which a lock that another session holds must be released, or it is asked again later."""


class PgVectorStore:
    """A table; see `VectorStore`.

    Args:
        uri: where it is.
    """

    def __init__(self, uri: StoreUri) -> None:
        self._uri = uri
        self._schema, _, self._table = uri.name.rpartition(".")
        self._opened: psycopg.Connection[Any] | None = None

    def look(self) -> About | None:
        """Returns what is kept about the table; see `VectorStore`."""
        if self._table in (ABOUT, INCOMING):
            raise OutputError(f"{self._uri}: that name is taken for notes; name another table")
        with self._errors(), self._connection() as connection:
            self._refuse_database(connection)
            if _exists(connection, self._name(ABOUT)):
                about = self._about(connection)
                if about is not None and _exists(connection, self._name()):
                    return about
            if _exists(connection, self._name()):
                raise OutputError(f"{self._uri} is a table that no run made; name another table")
            self._refuse_making(connection)
            return None

    def refuse_names(self, metadata: Sequence[str]) -> None:
        """Refuses none: each is a name in a document of JSON."""

    def make(self, about: About) -> None:
        """Makes the table, in place of one of the same name; see `VectorStore`."""
        if about.dimension > MOST_DIMENSIONS:
            raise OutputError(
                f"{self._uri}: vectors have {about.dimension} numbers, expected at most "
                f"{MOST_DIMENSIONS}; give --set task.truncate_dim=N, or another store"
            )
        with self._errors(), self._connection() as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            self._make_about(connection)
            self._run(
                connection,
                "INSERT INTO {about} VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET "
                "about = EXCLUDED.about",
                self._table,
                about.to_json(),
            )
            self._run(connection, "DROP TABLE IF EXISTS {table}")
            connection.execute(
                sql.SQL(
                    "CREATE TABLE {} (id text PRIMARY KEY, embedding vector({}) NOT NULL, "
                    "chunk integer NOT NULL, metadata jsonb NOT NULL)"
                ).format(self._name(), sql.Literal(about.dimension))
            )

    def write(self, about: About, chunk: int, rows: VectorRows) -> None:
        """Puts rows into the table, in one transaction; see `VectorStore`."""
        with self._errors(), self._connection() as connection:
            self._refuse_other(connection, about)
            register_vector(connection)
            self._copy(connection, rows)
            if about.key is not None:
                self._refuse_others(connection, about.key, chunk)
            self._run(
                connection,
                "INSERT INTO {table} SELECT id, embedding, %s, metadata FROM sparkinfer_incoming "
                "ON CONFLICT (id) DO UPDATE SET embedding = EXCLUDED.embedding, "
                "chunk = EXCLUDED.chunk, metadata = EXCLUDED.metadata",
                chunk,
            )
            gone = list(rows.gone)
            self._run(
                connection, "DELETE FROM {table} WHERE id = ANY(%s) AND chunk = %s", gone, chunk
            )

    def nearest(self, about: About, vector: npt.NDArray[np.float32], k: int) -> list[Neighbour]:
        """Returns the nearest of the table; see `VectorStore`."""
        with self._errors(), self._connection() as connection:
            self._refuse_other(connection, about)
            register_vector(connection)
            found = self._run(
                connection,
                f"SELECT id, embedding {OPERATORS[about.distance]} %s AS distance, metadata "
                "FROM {table} ORDER BY distance LIMIT %s",
                vector,
                k,
            ).fetchall()
        return [
            Neighbour(name, float(distance), _without_nulls(metadata))
            for name, distance, metadata in found
        ]

    def count(self) -> int:
        """Returns the number of vectors; see `VectorStore`."""
        with self._errors(), self._connection() as connection:
            return int(_value(self._run(connection, "SELECT count(*) FROM {table}")))

    def close(self) -> None:
        """Ends the connection; see `VectorStore`."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Yields the connection in a transaction, which is committed at the end."""
        if self._opened is None or self._opened.closed:
            given = psycopg.conninfo.conninfo_to_dict(self._uri.place)
            options = {key: value for key, value in PATIENCE.items() if key not in given}
            self._opened = psycopg.connect(self._uri.place, **options)
        with self._opened.transaction():
            self._opened.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_WAIT,))
            yield self._opened

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Says of the database's errors whether asking again may help."""
        try:
            yield
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            lasting = (psycopg.errors.InsufficientResources, psycopg.errors.ProgramLimitExceeded)
            if isinstance(error, lasting) and not isinstance(
                error, psycopg.errors.TooManyConnections
            ):
                raise self._refusal(error) from error
            self.close()
            raise StoreAwayError(first_line(error)) from error
        except psycopg.Error as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> OutputError:
        return OutputError(
            f"{self._uri}: PostgreSQL refuses this ({first_line(error)}); correct it there, or "
            "name another table"
        )

    def _name(self, table: str = "") -> sql.Identifier:
        parts = (self._schema, table or self._table)
        return sql.Identifier(*(part for part in parts if part))

    def _run(self, connection: psycopg.Connection[Any], text: str, *values: Any) -> Any:
        """Runs a statement, in which `{table}` and `{about}` stand for the two tables."""
        named = sql.SQL(text).format(table=self._name(), about=self._name(ABOUT))
        return connection.execute(named, values or None, binary=True)

    def _about(self, connection: psycopg.Connection[Any], lock: str = "") -> About | None:
        asked = f"SELECT about FROM {{about}} WHERE name = %s {lock}"
        row = self._run(connection, asked, self._table).fetchone()
        return None if row is None else About.of_json(row[0], str(self._uri))

    def _make_about(self, connection: psycopg.Connection[Any]) -> None:
        if not _exists(connection, self._name(ABOUT)):  # else the schema need not allow it
            self._run(
                connection,
                "CREATE TABLE IF NOT EXISTS {about} (name text PRIMARY KEY, about text NOT NULL)",
            )

    def _refuse_database(self, connection: psycopg.Connection[Any]) -> None:
        """Raises OutputError where there is no pgvector."""
        asked = "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
        if not _value(connection.execute(asked)):
            raise OutputError(
                f"{self._uri}: its PostgreSQL has no extension pgvector; install that on the "
                "server, or give another store"
            )

    def _refuse_making(self, connection: psycopg.Connection[Any]) -> None:
        """Raises OutputError if this user may not make a table in the schema."""
        schema = self._schema or _value(connection.execute("SELECT current_schema()"))
        asked = "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %s"
        row = connection.execute(asked, (schema,)).fetchone()
        if row is None or not row[0]:
            raise OutputError(
                f"{self._uri}: there is no schema {schema!r} in which this user may make tables; "
                "make one, or grant CREATE on it"
            )

    def _refuse_other(self, connection: psycopg.Connection[Any], about: About) -> None:
        """Raises OutputError if the table is another by now; keeps others from recreating it."""
        if self._about(connection, "FOR SHARE") != about:
            raise OutputError(
                f"{self._uri} was recreated or removed by something else meanwhile; make "
                "sure that nothing else changes it"
            )

    def _copy(self, connection: psycopg.Connection[Any], rows: VectorRows) -> None:
        """Puts rows into a table of this transaction."""
        connection.execute(
            "CREATE TEMP TABLE sparkinfer_incoming "
            "(id text PRIMARY KEY, embedding vector, metadata jsonb) ON COMMIT DROP"
        )
        into = "COPY sparkinfer_incoming FROM STDIN (FORMAT BINARY)"
        with connection.cursor() as cursor, cursor.copy(into) as copy:
            copy.set_types(["text", "vector", "jsonb"])
            for name, vector, metadata in zip(rows.ids, rows.vectors, rows.metadata, strict=True):
                copy.write_row((name, vector, Jsonb(dict(metadata))))

    def _refuse_others(self, connection: psycopg.Connection[Any], key: str, chunk: int) -> None:
        """Raises RepeatedKeyError if one of the new ids is there and is of another chunk."""
        row = self._run(
            connection,
            "SELECT id, chunk FROM {table} JOIN sparkinfer_incoming USING (id) WHERE chunk <> %s "
            "LIMIT 1",
            chunk,
        ).fetchone()
        if row is not None:
            raise RepeatedKeyError(f"{key}={row[0]!r} is in chunks {row[1]} and {chunk}")


def _exists(connection: psycopg.Connection[Any], table: sql.Identifier) -> bool:
    name = table.as_string(connection)
    return _value(connection.execute("SELECT to_regclass(%s)", (name,))) is not None


def _value(cursor: Any) -> Any:
    row = cursor.fetchone()
    return None if row is None else row[0]


def _without_nulls(metadata: Any) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if value is not None}
