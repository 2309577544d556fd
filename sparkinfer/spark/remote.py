"""Sessions of Spark Connect: a client of a server that has the cluster."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.messages import first_line
from sparkinfer.redaction import remember_secrets
from sparkinfer.spark.errors import explain
from sparkinfer.spark.java import ensure_java
from sparkinfer.workers.steps import watched

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEME = "sc://"
REMOTE = "SPARK_REMOTE"
"""Environment variable that names a server, as pyspark reads it."""

PORT = 15002
"""A server's default. Source: `spark.connect.grpc.binding.port`."""

KNOCK_TIMEOUT_S = 10.0
"""Time within which a server's machine must take a connection; its own answer may take longer."""

HANDSHAKE_TIMEOUT_S = 20.0
"""Time within which what took the connection must speak gRPC."""

RETRIES = 6
"""Calls after one that finds no server; the pauses grow fourfold from 50 ms, to a minute in all.
pyspark itself has 15, which take more than ten minutes at each call."""

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Environment variables by which gRPC connects through another machine."""

FOR_WORKERS = {
    # A Python batch is what a worker holds before it can look at the rows.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "2048",
    # Turns "Python worker exited unexpectedly" into a traceback.
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
}
"""What a session that is made here sets, where its server lets it."""


def remote_address(master: str | None) -> str | None:
    """Returns the server's address that the master or the environment names, None if neither does.

    Raises:
        ConfigError: both name something, or the variable is empty, or the master is mistyped.
    """
    of_environment = os.environ.get(REMOTE)
    if of_environment == "":  # pyspark takes that for a server, too
        raise ConfigError(f"{REMOTE} is empty, expected sc://HOST:PORT; unset the variable")
    if master is not None:
        _refuse_mistyped(master)
    if master is None or master == of_environment:
        return of_environment
    if of_environment is not None:
        if is_same_server(master, of_environment) and not _parameters(master):
            return of_environment  # with its parameters
        raise ConfigError(
            f"master={plain(master)!r}: the environment variable {REMOTE} names another, "
            f"{plain(of_environment)}; leave the option out, or unset the variable"
        )
    return master if master.startswith(SCHEME) else None


def _refuse_mistyped(master: str) -> None:
    """Raises ConfigError for `sc:/host` and the like, which Spark would take for a local path."""
    scheme = re.match(r"(sc|spark|k8s|mesos):(?!//.)", master)
    if scheme is not None:
        raise ConfigError(f"master={plain(master)!r}: expected {scheme[1]}://HOST:PORT")


def plain(address: str) -> str:
    """Returns an address without its parameters, one of which may be a token."""
    return address.partition("/;")[0].rstrip("/")


def is_same_server(one: str, other: str) -> bool:
    """Returns whether two addresses differ in their parameters and in a default port at most."""
    return plain(one).removesuffix(f":{PORT}") == plain(other).removesuffix(f":{PORT}")


def address_of(spark: SparkSession) -> str:
    """Returns the address of a session's server."""
    builder: Any = getattr(getattr(spark, "client", None), "_builder", None)
    place = getattr(builder, "endpoint", None) or getattr(builder, "host", None)
    return f"{SCHEME}{place}" if place else "Spark Connect"


def active_session() -> SparkSession | None:
    """Returns the session that is there, in whatever thread it was made, None if there is none."""
    from pyspark.sql import SparkSession
    from pyspark.sql.utils import is_remote

    active = SparkSession.getActiveSession()
    if active is None and is_remote():
        with suppress(Exception):  # there is none; the class of pyspark's error varies
            active = SparkSession.active()
    return active


def start_remote(address: str, conf: Mapping[str, str], timeout_s: float | None) -> SparkSession:
    """Returns a session of a server, which has answered.

    Args:
        address: `sc://host:port`, with parameters; `local[n]` for a server in this process.
        conf: settings for the session.
        timeout_s: seconds without an answer after which the wait ends; None: pyspark ends it.

    Raises:
        EngineUnavailableError: the client's packages are missing, or no server answers.
        ConfigError: the server does not let a setting be made.
    """
    remember_secrets(_parameters(address))
    named = plain(address)
    if address.startswith(SCHEME):
        _knock(address)
    else:
        ensure_java()
    try:
        import_module("pyspark.sql.connect.session")
        from pyspark.sql import SparkSession

        if address.startswith(SCHEME):
            _shake_hands(address)
        session = SparkSession.builder.remote(address).getOrCreate()
        try:
            watched(lambda: session.version, f"the Spark Connect server {named}", timeout_s)
        finally:  # also for what pyspark calls as this process ends
            _limit_retries(session)
    except EngineUnavailableError:
        raise
    except ImportError as error:
        raise EngineUnavailableError(
            f"{named}: pyspark's client for Spark Connect lacks a package "
            f"({first_line(error)}); run pip install 'pyspark[connect]'"
        ) from error
    except Exception as error:  # gRPC's and Spark's errors have no common root
        raise EngineUnavailableError(
            f"no session on {named}: {explain(error)}; check the address, its parameters and the "
            "server's log"
        ) from error
    _configure(session, conf)
    return session


def _limit_retries(session: SparkSession) -> None:
    """Has calls give up a server that is gone; one that starts its cluster has answered by now."""
    with suppress(ImportError, AttributeError):  # pyspark 3.5 has no policies that can be set
        policies = import_module("pyspark.sql.connect.client.retries")
        client: Any = session.client
        client.set_retry_policies([policies.DefaultPolicy(max_retries=RETRIES)])


def _parameters(address: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in address.partition("/;")[2].split(";"))
    return {name: value for name, _, value in pairs if name}


def _knock(address: str) -> None:
    """Raises EngineUnavailableError if nothing takes a connection: pyspark would wait for minutes.

    Raises:
        ConfigError: it is no address.
    """
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    try:
        parts = urlsplit(plain(address))
        place = (parts.hostname or "", parts.port or PORT)
    except ValueError:
        place = ("", PORT)
    if not place[0]:
        raise ConfigError(f"master={plain(address)!r}: expected sc://HOST:PORT")
    try:
        socket.create_connection(place, KNOCK_TIMEOUT_S).close()
    except OSError as error:
        raise EngineUnavailableError(
            f"no Spark Connect server at {plain(address)} ({error}); start it, or check the address"
        ) from error


def _shake_hands(address: str) -> None:
    """Raises EngineUnavailableError if no gRPC is spoken there: pyspark would try for minutes.

    It says nothing of the server behind, which may have to start its cluster first.
    """
    grpc: Any = import_module("grpc")
    client = import_module("pyspark.sql.connect.client")
    builder = getattr(client, "DefaultChannelBuilder", None) or client.ChannelBuilder
    channel = builder(address).toChannel()
    try:
        grpc.channel_ready_future(channel).result(HANDSHAKE_TIMEOUT_S)
    except grpc.FutureTimeoutError:
        raise EngineUnavailableError(
            f"no Spark Connect server at {plain(address)}: what listens there has not spoken gRPC "
            f"within {HANDSHAKE_TIMEOUT_S:g} s; check the port, and use_ssl and token of the "
            "address"
        ) from None
    finally:
        channel.close()


def _configure(session: SparkSession, conf: Mapping[str, str]) -> None:
    for name, value in FOR_WORKERS.items():
        with suppress(Exception):  # a serverless session has few settings
            session.conf.set(name, value)
    for name, value in conf.items():
        try:
            session.conf.set(name, value)
        except Exception as error:  # Spark's errors have no common root
            raise ConfigError(
                f"spark_conf.{name}: the Spark Connect server does not let it be set "
                f"({explain(error)}); leave it out, or set it where the server is started"
            ) from error
