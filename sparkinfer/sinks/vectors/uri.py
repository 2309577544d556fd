"""How a vector store is named: where it is, and a collection or table in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown
from sparkinfer.redaction import remember_secrets, without_secrets
from sparkinfer.storage import absolute

CHROMA, POSTGRESQL = "chroma", "postgresql"

_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]")
_TABLE = re.compile(r"([a-z_][a-z0-9_]{0,62}\.)?[a-z_][a-z0-9_]{0,62}")

_FORMS = "chroma:FOLDER#collection or postgresql://user@host/database#table"


@dataclass(frozen=True)
class StoreUri:
    """Where vectors are.

    Attributes:
        kind: a key of `VECTOR_STORES`.
        place: the folder, or the database's address, which may hold a password.
        name: of the collection or the table.
        plain: the whole without user, password and options: what tells it from others.
    """

    kind: str
    place: str = field(repr=False)
    name: str
    plain: str

    def __str__(self) -> str:
        return f"vector store {self.plain!r}"


def parse_store(given: str) -> StoreUri:
    """Returns what the name of a store says.

    A relative folder is taken from where this process is. A password in it is kept out of all
    texts from here on.

    Raises:
        ConfigError: it is no such name.
    """
    place, mark, name = given.rpartition("#")
    if not mark:
        place, name = given, ""
    scheme = place.partition(":")[0]
    if scheme == CHROMA and not place.startswith(f"{CHROMA}://"):
        return _chroma(place.removeprefix(f"{CHROMA}:"), name)
    if re.match(r"postgres(ql)?://", place):
        return _postgresql(place, name)
    raise ConfigError(
        f"vectors.store={shown(without_secrets(given))}: expected {_FORMS}; correct it"
    )


def _chroma(folder: str, name: str) -> StoreUri:
    if not folder or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", folder):
        raise ConfigError(
            f"vectors.store=chroma:{shown(folder)}: expected a folder on a disk of this machine; "
            f"give {_FORMS}"
        )
    if not _COLLECTION.fullmatch(name):
        raise ConfigError(
            f"vectors.store: the collection {shown(name)}: expected 3 to 512 letters, digits, ., _ "
            "and -, with a letter or digit at both ends; give it after #"
        )
    place = absolute(folder)
    return StoreUri(CHROMA, place, name, f"{CHROMA}:{place}#{name}")


def _postgresql(place: str, name: str) -> StoreUri:
    try:
        parts = urlsplit(place)
        port = f":{parts.port}" if parts.port else ""
        if "@" in f"{parts.path}{parts.query}{parts.fragment}{name}":
            raise ValueError("a password with / or the like, which would be shown")
    except ValueError:
        raise ConfigError(
            f"vectors.store: the address of the database is not valid; give {_FORMS}, with %40, "
            "%2F and the like for special characters in user and password"
        ) from None
    passwords = [parts.password or "", *parse_qs(parts.query).get("password", ())]
    remember_secrets({f"password{n}": unquote(one) for n, one in enumerate(passwords)})
    if not _TABLE.fullmatch(name):
        raise ConfigError(
            f"vectors.store: the table {shown(name)}: expected table or schema.table, each of up "
            "to 63 lower-case letters, digits and _; give it after #"
        )
    plain = f"{POSTGRESQL}://{parts.hostname or ''}{port}{parts.path}#{name}"
    return StoreUri(POSTGRESQL, place, name, plain)
