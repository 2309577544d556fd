"""What a run logs to MLflow, into real stores: SQLite, and a server over HTTP."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, JobError
from sparkinfer.tracking import calls
from sparkinfer.tracking.calls import brief_requests, try_steps
from sparkinfer.tracking.names import as_texts, valid_names
from tests.disk import Killed
from tests.made_up_engine import MadeUpEngine, job_of_eighty_rows, run_made_up
from tests.test_runner import kill_before
from tests.written import manifest_values

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own warnings


class Server:
    """A tracking server with a database of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
        store += ["--artifacts-destination", f"{folder}/artifacts", "--serve-artifacts"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(port), *store],
            cwd=folder,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.client = mlflow.MlflowClient(self.uri)

    def wait(self) -> Server:
        """Returns once it answers."""
        asked = threading.Event()
        for _ in range(600):
            assert self._process.poll() is None, self.log.read_text()
            with socket.socket() as tried:
                if not tried.connect_ex(("127.0.0.1", int(self.uri.rpartition(":")[2]))):
                    return self
            asked.wait(0.1)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty database, made once: creating its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def job(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoringConfig:
    monkeypatch.chdir(tmp_path)  # artifacts of a database are below the current folder
    return job_of_eighty_rows(classifier, tmp_path)


def tracked(job: ScoringConfig, uri: str, **options: Any) -> ScoringConfig:
    asked = {"experiment": "scored", "tracking_uri": uri, **options}
    return job.replace(mlflow=asked)


def runs_in(uri: str, config: ScoringConfig) -> list[Any]:
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(str(config.mlflow.experiment))
    found = client.search_runs([experiment.experiment_id])
    return [one for one in found if one.data.tags["sparkinfer.output"] == str(config.output)]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [one for one in caplog.records if one.name.startswith("sparkinfer")]
    return [one.getMessage() for one in records if one.levelno >= logging.WARNING]


def test_a_run_says_to_mlflow_what_was_done(job: ScoringConfig, store: str) -> None:
    config = tracked(job, store, run_name="nightly", tags={"team": "films"})
    (Path(str(job.output)) / "_sparkinfer").mkdir(parents=True)
    (Path(str(job.output)) / "_sparkinfer" / "report.html").write_text("<p>page</p>")
    result = run_made_up(config)
    [run] = runs_in(store, config)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "nightly")
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    assert (metrics["rows"], metrics["error_rows"]) == (80, result.error_rows)
    assert metrics["accuracy"] == pytest.approx(result.metrics["accuracy"])
    assert {"seconds", "rows_per_s", "padding_share", "phase.score_s"} <= metrics.keys()
    assert params["model_fingerprint"] == result.model_fingerprint
    assert (params["input_col"], params["chunks.target_rows"]) == ("text", "20")
    assert (tags["team"], tags["sparkinfer.engine"]) == ("films", "local")
    assert tags["sparkinfer.model"] == job.model
    [logged] = run.inputs.dataset_inputs
    assert logged.dataset.name == job.input
    artifacts = mlflow.MlflowClient(store).list_artifacts(run.info.run_id)
    assert {one.path for one in artifacts} == {"manifest.json", "report.html"}


def test_a_resumed_run_goes_on_in_its_run_over_http(
    job: ScoringConfig, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    config = tracked(job, server.wait().uri)
    with pytest.raises(Killed):
        run_made_up(config, MadeUpEngine(config, before_chunk=kill_before(2)))
    [begun] = runs_in(server.uri, config)
    run_made_up(config.replace(num_workers=2))
    [run] = runs_in(server.uri, config)
    assert (run.info.run_id, run.info.status) == (begun.info.run_id, "FINISHED")
    history = server.client.get_metric_history(run.info.run_id, "call.rows")
    assert sum(one.value for one in history if one.step == max(h.step for h in history)) == 40
    run_made_up(config.replace(overwrite=True))
    assert len(runs_in(server.uri, config)) == 2
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("error", "status"), [(JobError("it broke"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_end_is_that_of_the_run(
    job: ScoringConfig, store: str, error: BaseException, status: str
) -> None:
    config = tracked(job, store)

    def fail(task: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        run_made_up(config, MadeUpEngine(config, before_chunk=fail))
    [run] = runs_in(store, config)
    assert run.info.status == status


def test_a_server_that_is_down_is_one_warning_and_the_next_call_writes_all(
    job: ScoringConfig, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        config = tracked(job, f"http://127.0.0.1:{free.getsockname()[1]}")
        assert run_made_up(config).rows == 80
    [warning] = warnings_in(caplog)
    assert "MLflow has no entry, parameters, input, metrics" in warning
    config = tracked(job, store)
    run_made_up(config)  # nothing to score
    [run] = runs_in(store, config)
    assert (run.info.status, run.data.metrics["rows"]) == ("FINISHED", 80)
    assert run.data.params["input_col"] == "text"


def test_the_callers_run_is_the_parent_and_stays_open(job: ScoringConfig, store: str) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    try:
        mlflow.set_experiment("callers")
        with mlflow.start_run() as parent:
            run_made_up(tracked(job, store))
            assert mlflow.active_run().info.run_id == parent.info.run_id
        [run] = runs_in(store, tracked(job, store))
    finally:
        mlflow.set_tracking_uri(before)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.run_id != parent.info.run_id


def test_no_secret_is_logged(
    job: ScoringConfig, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "swordfish-17")
    tags = {"source": "https://me:swordfish-17@host/x", "api_key": "abc123"}
    config = tracked(job, store, tags=tags)

    def fail(task: Any) -> None:
        raise JobError("the store refused password=swordfish-17")

    with pytest.raises(JobError):
        run_made_up(config, MadeUpEngine(config, before_chunk=fail))
    [run] = runs_in(store, config)
    said = str(run.to_dictionary())
    assert (run.data.tags["api_key"], run.data.params["mlflow.tags.api_key"]) == ("***", "***")
    assert "the store refused" in said
    assert "swordfish" not in said
    assert "abc123" not in said


def test_a_run_in_mlflow_that_was_deleted_is_made_anew(job: ScoringConfig, store: str) -> None:
    config = tracked(job, store)
    run_made_up(config)
    [deleted] = runs_in(store, config)
    mlflow.MlflowClient(store).delete_run(deleted.info.run_id)
    run_made_up(config)
    [run] = runs_in(store, config)
    assert run.info.run_id != deleted.info.run_id


def test_an_experiment_that_cannot_be_is_refused_before_anything_is_written(
    job: ScoringConfig, store: str
) -> None:
    client = mlflow.MlflowClient(store)
    client.delete_experiment(client.create_experiment("gone"))
    for name, reason in (
        ("gone", "the experiment is deleted"),
        ("x" * 600, "correct mlflow.experiment"),
    ):
        with pytest.raises(ConfigError, match=reason):
            run_made_up(tracked(job, store, experiment=name))
    with pytest.raises(
        ConfigError, match="unsupported URI 'foo://.*@host/x'.* correct mlflow.exp"
    ) as of:
        run_made_up(tracked(job, "foo://me:swordfish@host/x"))
    assert "swordfish" not in str(of.value)
    assert not Path(str(job.output)).exists()


def test_without_mlflow_the_extra_is_named(
    job: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(EngineUnavailableError, match=r"the extra \[mlflow\]"):
        run_made_up(tracked(job, "sqlite:///x"))


def test_without_a_name_it_is_the_notebooks_experiment_on_databricks_only(
    job: ScoringConfig, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tracked(job, store, experiment=True)
    with pytest.raises(ConfigError, match="only Databricks notebooks have one; give its name"):
        run_made_up(config)
    number = mlflow.MlflowClient(store).create_experiment("notebook")
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "16.4")
    monkeypatch.setattr("mlflow.tracking.fluent._get_experiment_id", lambda: number)
    run_made_up(config)
    assert len(runs_in(store, tracked(job, store, experiment="notebook"))) == 1


def test_the_run_in_mlflow_is_noted_with_the_output(job: ScoringConfig, store: str) -> None:
    config = tracked(job, store)
    run_made_up(config)
    [run] = runs_in(store, config)
    noted = Path(str(job.output), "_sparkinfer")
    [name] = [one.name for one in noted.glob("mlflow-*.json")]
    assert name == f"mlflow-{manifest_values(job.output)['run']}.json"
    assert run.info.run_id in (noted / name).read_text()


def test_an_alias_is_shown_as_the_version_that_it_stood_for(
    job: ScoringConfig, store: str, tmp_path: Path
) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    try:
        client = mlflow.MlflowClient()
        client.create_registered_model("mood")
        client.create_model_version("mood", str(job.model))
        client.set_registered_model_alias("mood", "best", "1")
        loading = {"cache_dir": str(tmp_path / "cache")}
        config = tracked(job, store).replace(model="models:/mood@best", loading=loading)
        result = run_made_up(config)
    finally:
        mlflow.set_tracking_uri(before)
    assert "model models:/mood@best is models:/mood/1" in result.notes
    [run] = runs_in(store, config)
    assert run.data.tags["sparkinfer.model"] == "models:/mood/1"
    assert run.data.params["model"] == "models:/mood@best"


def test_the_environment_is_as_it_was_after_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with brief_requests():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == str(calls.REQUEST_S)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_steps_that_do_not_end_are_not_waited_for() -> None:
    hangs = threading.Event()
    failed = try_steps([("first", lambda: None), ("second", hangs.wait), ("third", int)], 0.2)
    hangs.set()
    assert failed.keys() == {"second", "third"}


def test_a_step_that_fails_leaves_the_others_unless_the_server_is_gone() -> None:
    import requests

    def raises(error: Exception) -> Callable[[], None]:
        def step() -> None:
            raise error

        return step

    steps = [("a", raises(ValueError("x"))), ("b", int)]
    assert try_steps(steps) == {"a": "x"}
    gone = ("a", raises(requests.exceptions.ConnectionError("down")))
    assert try_steps([gone, ("b", int)]) == {"a": "down", "b": "down"}


def test_names_and_values_are_as_mlflow_takes_them() -> None:
    assert valid_names({"a/b": 1, "a:b": 2, "ü": 3, "..": 4, "m.x": 5}) == {
        "a_b": 1,
        "a_b_2": 2,
        "_": 3,
        "__2": 4,
        "m.x": 5,
    }
    texts = as_texts({"long": "x" * 900, "list": ["a"], "none": None}, 500)
    assert len(texts["long"]) == 500
    assert "of 900 characters" in texts["long"]
    assert (texts["list"], texts["none"]) == ('["a"]', "null")


def test_a_server_that_dies_in_the_middle_is_one_warning(
    job: ScoringConfig, server: Server, caplog: pytest.LogCaptureFixture
) -> None:  # the last in this file: it is the module's server that dies
    config = tracked(job, server.wait().uri)
    result = run_made_up(config, MadeUpEngine(config, before_chunk=lambda task: server.kill()))
    assert result.rows == 80
    [warning] = warnings_in(caplog)
    assert "MLflow has no metrics, the manifest, the report, its end of this run" in warning
