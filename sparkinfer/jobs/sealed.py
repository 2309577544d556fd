"""JSON documents of a work folder: of a known version, and with a checksum that tells changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

LAYOUT_VERSION = 3
"""Of what is written."""

READ_VERSIONS = frozenset({2, 3})
"""Of what is read. Documents of version 2 have no checksum, and lack what has a default."""


class DamagedError(Exception):
    """A document is not what was written."""


class UnfinishedError(DamagedError):
    """A document is not whole, as one whose writer died, or a damaged one."""


class OtherVersionError(Exception):
    """A document is of another version, which its message names."""


def seal(values: Mapping[str, Any]) -> str:
    """Returns the document of some JSON values."""
    body = {"schema_version": LAYOUT_VERSION, **values}
    return json.dumps({**body, "checksum": _checksum(body)})


def unseal(content: bytes) -> dict[str, Any]:
    """Returns the values of a document.

    Raises:
        UnfinishedError: it is not JSON.
        DamagedError: it is not as it was written.
        OtherVersionError: it is of a version that is not read.
    """
    try:
        body = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnfinishedError(f"{type(error).__name__}: {error}") from None
    if not isinstance(body, dict):
        raise DamagedError("expected a JSON object")
    version = body.get("schema_version")
    if version not in READ_VERSIONS:
        by = f" (written by {body['written_by']})" if "written_by" in body else ""
        raise OtherVersionError(f"has layout version {version!r}{by}, expected {LAYOUT_VERSION}")
    checksum = body.pop("checksum", None)
    if version != 2 and checksum != _checksum(body):
        raise DamagedError("its checksum is not that of its content: it was changed")
    del body["schema_version"]
    return body


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
