from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

import sparkinfer.jobs.runner
from sparkinfer.disk_errors import disk_errors_reported, is_passing
from sparkinfer.exceptions import ConfigError, JobError, TooManyErrorsError
from sparkinfer.jobs.lease import Lease
from sparkinfer.plan.progress import Progress
from tests.fuse_mount import FuseMount
from tests.made_up_engine import write_input


def told(error: BaseException) -> str:
    with pytest.raises(JobError) as raised, disk_errors_reported("/data/out"):
        raise error
    assert raised.value.__cause__ is error
    return raised.value.message


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


def test_a_limit_of_errors_that_is_reached_is_not_told_as_one_of_the_errors() -> None:
    said = "3 rows have an error, and 2 are allowed: 3 x 'model: OSError: [Errno 2] No such: '/x''"
    with pytest.raises(TooManyErrorsError) as raised, disk_errors_reported("/data/out"):
        raise TooManyErrorsError(said)
    assert raised.value.message == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), "'/data/out' has no space left: free some on"),
        (OSError(errno.EDQUOT, "Quota", "/data/out/x"), "'/data/out/x' has no space left in this"),
        (FileNotFoundError(errno.ENOENT, "No such", "/data/out/x"), "'/data/out/x' is gone: "),
        (OSError(errno.ESTALE, "Stale"), "'/data/out' cannot be reached (Stale file handle): "),
        (PermissionError(errno.EACCES, "No", "/data/x"), "'/data/x' may not be changed by this"),
        (caused(JobError("chunk 3"), OSError(errno.EROFS, "")), "'/data/out' is mounted read-only"),
        (
            JobError("scoring chunk 3 failed: OSError: [Errno 28] No space left on device"),
            "'/data/out' has no space left: free some on its disk",
        ),
        (
            JobError("FileNotFoundError: [Errno 2] No such file or directory: '/data/out/_x'"),
            "'/data/out/_x' is gone: ",
        ),
        (
            JobError("chunk 3 failed: java.io.IOException: No space left on device"),
            "'/data/out' has no space left: ",
        ),
    ],
)
def test_an_error_of_the_file_system_is_told_with_path_and_remedy(
    error: Exception, said: str
) -> None:
    message = told(error)
    assert message.startswith(said)
    assert message.endswith(", and run the same command to resume")


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("[Errno 28] is not an option"),
        JobError("3 rows have an error"),
        OSError(errno.E2BIG, "Argument list too long"),
    ],
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, disk_errors_reported("/data/out"):
        raise error
    assert raised.value is error


@pytest.fixture
def config(classifier: Path, tmp_path: Path, mount: FuseMount) -> sparkinfer.ScoringConfig:
    return sparkinfer.ScoringConfig(
        model=str(classifier),
        input=str(write_input(tmp_path / "in")),
        input_col="text",
        output=str(mount.hosts[0] / "out"),
        dtype="float32",
        chunks={"target_rows": 20},
    )


def when_scoring_begins(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    expect = Progress.expect

    def begin(progress: Progress, *what: int | None) -> None:
        act()
        expect(progress, *what)

    monkeypatch.setattr(Progress, "expect", begin)


@pytest.mark.parametrize("engine", ["local", pytest.param("pandas_udf", marks=pytest.mark.spark)])
def test_a_disk_that_fills_up_during_a_run_is_told_and_the_run_resumes(
    config: sparkinfer.ScoringConfig,
    mount: FuseMount,
    engine: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spark = None if engine == "local" else request.getfixturevalue("spark")
    config = config.replace(engine=engine)
    when_scoring_begins(monkeypatch, lambda: mount.switch(refused={"write": "ENOSPC"}))
    with pytest.raises(JobError) as raised:
        sparkinfer.run(config, spark)
    assert str(config.output) in raised.value.message
    assert " has no space left: free some on its disk" in raised.value.message
    mount.switch()
    monkeypatch.undo()
    # The lease could not be released on a full disk, and this process still lives.
    monkeypatch.setattr(sparkinfer.jobs.runner, "Lease", partial(Lease, lost_after_s=1.0))
    assert sparkinfer.run(config, spark).rows == 80


def test_an_output_that_is_deleted_during_a_run_is_told_with_its_path(
    config: sparkinfer.ScoringConfig, mount: FuseMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    when_scoring_begins(monkeypatch, lambda: shutil.rmtree(mount.backing / "out"))
    with pytest.raises(JobError) as raised:
        sparkinfer.run(config.replace(engine="local"))
    assert str(config.output) in raised.value.message
    # Whichever is missed first: a file in it, or the lease.
    assert re.search("is gone: deleted or moved|its file was removed", raised.value.message)
    assert os.strerror(errno.ENOENT) not in raised.value.message


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (EndpointConnectionError(endpoint_url="http://store"), True),
        (ReadTimeoutError(endpoint_url="http://store"), True),
        (ConnectionClosedError(endpoint_url="http://store"), True),
        (NoCredentialsError(), False),
        (ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject"), False),
        (OSError(errno.ECONNREFUSED, "refused"), True),
        (OSError("503 Slow Down"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (ValueError("Timeout"), False),
    ],
)
def test_a_lost_connection_passes_and_an_answer_does_not(error: Exception, passes: bool) -> None:
    assert bool(is_passing(error)) is passes
