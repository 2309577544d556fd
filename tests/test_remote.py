"""What is said and read of Spark Connect without a server; a real one is in `test_connect.py`."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from typing import Any

import pytest

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.redaction import without_secrets
from sparkinfer.spark.errors import explain, installation_problem
from sparkinfer.spark.remote import plain, remote_address, start_remote
from sparkinfer.spark.settings import setting, settings

TOKEN = "dapi-7f3a91"
ADDRESS = f"sc://127.0.0.1:{{port}}/;token={TOKEN};use_ssl=true"


def test_a_server_is_named_by_the_master_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SPARK_REMOTE", raising=False)
    assert remote_address(None) is None
    assert remote_address("spark://h:7077") is None
    assert remote_address("sc://h") == "sc://h"
    monkeypatch.setenv("SPARK_REMOTE", "sc://h:1/;token=abc")
    assert remote_address(None) == "sc://h:1/;token=abc"
    for other in ("local[2]", "sc://h:2", "sc://h:1/;token=xyz"):
        with pytest.raises(ConfigError, match="names another, sc://h:1; leave the opt") as raised:
            remote_address(other)
        assert "xyz" not in raised.value.message
    monkeypatch.setenv("SPARK_REMOTE", "")
    for master in (None, "local[2]"):
        with pytest.raises(ConfigError, match="SPARK_REMOTE is empty.*unset the variable"):
            remote_address(master)


def test_a_server_that_is_named_twice_is_one_with_the_parameters_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARK_REMOTE", "sc://h:15002/;token=abc")
    for same in ("sc://h:15002", "sc://h", "sc://h:15002/", "sc://h:15002/;token=abc"):
        assert remote_address(same) == "sc://h:15002/;token=abc"


@pytest.fixture
def listener() -> Any:
    """A socket that takes connections, and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_server_that_is_not_there_is_said_at_once_and_its_token_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(EngineUnavailableError) as raised:
        start_remote(ADDRESS.format(port=port), {}, 10)
    assert f"no Spark Connect server at sc://127.0.0.1:{port} (" in raised.value.message
    assert TOKEN not in raised.value.message
    assert TOKEN not in without_secrets(f"a text with {TOKEN}")
    assert plain(ADDRESS) == "sc://127.0.0.1:{port}"


@pytest.mark.spark
@pytest.mark.skipif(find_spec("grpc_status") is not None, reason="pyspark's client has its needs")
def test_a_package_that_the_client_lacks_is_named(listener: socket.socket) -> None:
    with pytest.raises(EngineUnavailableError, match=r"lacks a package .*'pyspark\[connect\]'"):
        start_remote(f"sc://127.0.0.1:{listener.getsockname()[1]}", {}, 10)


class ConnectError(Exception):
    """Stands for an error of pyspark's client, which is told by its module."""


ConnectError.__module__ = "pyspark.errors.exceptions.connect"

TRACEBACK = (
    "\n  An exception was thrown from the Python worker. Please see the stack trace below.\n"
    "[PYTHON_EXCEPTION] An exception was thrown from the Python worker: Traceback (most recent "
    'call last):\n  File "worker.py", line 7, in score\n    import it\n{error}\n SQLSTATE: 38000'
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TRACEBACK.format(error="ValueError: the disk is gone"), "ValueError: the disk is gone"),
        (
            TRACEBACK.format(error="sparkinfer.exceptions.ModelLoadError: model 'm' is not there"),
            "model 'm' is not there",
        ),
        (
            "[TABLE_OR_VIEW_NOT_FOUND] no table `nope`. SQLSTATE: 42P01;\n'Plan\n\n\n"
            "JVM stacktrace:\nStack\n\tat a.B(C.scala:1)\nCaused by: another\n",
            "[TABLE_OR_VIEW_NOT_FOUND] no table `nope`. SQLSTATE: 42P01;",
        ),
        (
            "(org.apache.spark.SparkSQLException) [OPERATION_CANCELED] It has been canceled. "
            "SQLSTATE: HY008\n\nJVM stacktrace:\nStack",
            "(org.apache.spark.SparkSQLException) [OPERATION_CANCELED] It has been canceled.",
        ),
        (
            "<_MultiThreadedRendezvous of RPC that terminated with:\n\tstatus = UNAVAILABLE\n"
            '\tdetails = "failed to connect to all addresses"\n\tdebug = "x"\n>',
            "the Spark Connect server does not answer: failed to connect to all addresses",
        ),
    ],
)
def test_an_error_of_the_client_is_one_line(text: str, said: str) -> None:
    assert explain(ConnectError(text)) == said


def test_what_is_wrong_with_the_servers_python_is_fixed_there() -> None:
    missing = ConnectError(TRACEBACK.format(error="ModuleNotFoundError: No module named 'torch'"))
    assert installation_problem(missing) == (
        "the workers' Python has no module 'torch'; install the driver's packages where the Spark "
        "Connect server's workers run, or in the environment of a serverless session"
    )
    mismatch = "Python in worker has different version: 3.12 than that in driver: 3.11, PySpark"
    assert installation_problem(ConnectError(mismatch)) == (
        "this process runs Python 3.11, the workers of the Spark Connect server 3.12; run it with "
        "Python 3.12, or have the server's workers use 3.11 by PYSPARK_PYTHON where it is started"
    )


class Serverless:
    """A session that shows and lets be set one setting, as serverless ones do a few."""

    def __init__(self) -> None:
        self.values: dict[str, str | None] = {"spark.sql.session.timeZone": "UTC"}
        self.conf = self

    def get(self, name: str, default: str | None) -> str | None:
        self._refuse(name)
        return self.values[name]

    def set(self, name: str, value: str) -> None:
        self._refuse(name)
        self.values[name] = value

    def _refuse(self, name: str) -> None:
        if name not in self.values:
            raise ConnectError(f"[CONFIG_NOT_AVAILABLE] Configuration {name} is not available.")


def test_settings_that_a_session_does_not_have_are_left_alone() -> None:
    given = Serverless()
    session: Any = given
    assert setting(session, "spark.task.cpus") is None
    values = {"spark.sql.session.timeZone": "CET", "spark.sql.parquet.outputTimestampType": "x"}
    with settings(session, values):
        assert given.values == {"spark.sql.session.timeZone": "CET"}
    assert given.values == {"spark.sql.session.timeZone": "UTC"}


@pytest.mark.parametrize("master", ["sc:/h", "sc:h:15002", "sc://", "spark:/h:7077", "k8s:h"])
def test_a_mistyped_master_is_refused_before_anything_starts(
    master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARK_REMOTE", raising=False)
    with pytest.raises(ConfigError, match=r"expected \w+://HOST:PORT"):
        remote_address(master)
