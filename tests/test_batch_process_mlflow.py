"""Reported metrics in a real tracking store of MLflow on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sparkinfer
from sparkinfer.batch_process.commits import Commit, Proposal
from sparkinfer.batch_process.mlflow_log import ROUND_TAG, MlflowLog
from sparkinfer.exceptions import ConfigError
from sparkinfer.tracking.client import RUN_TAG
from tests.made_up_processor import Numbers, Recorder
from tests.ranks_in_threads import RanksInThreads

mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of an empty store, which is the default one meanwhile."""
    before = mlflow.get_tracking_uri()
    store = tmp_path_factory.mktemp("mlflow") / "store.db"
    mlflow.set_tracking_uri(f"sqlite:///{store}")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def runs_of(client: Any, experiment: str) -> list[Any]:
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_a_run_has_one_in_mlflow_with_what_was_reported(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkinfer.api.processor.LocalLauncher", RanksInThreads)
    monkeypatch.setattr("sparkinfer.batch_process.rank._limit_threads", lambda _: None)
    for _ in range(2):  # the second call finds nothing to do
        sparkinfer.torch_batch_process(
            Recorder,
            Numbers(8),
            batch_size=2,
            num_workers=2,
            checkpoint_interval=1,
            output=str(tmp_path / "out"),
            hparams={"journal": str(tmp_path / "journal")},
            mlflow_experiment="scored",
        )
    [run] = runs_of(client, "scored")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["validation/mean"] == 3.5
    for name in ("progress/rows", "progress/rows/rank_1"):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((one.step, one.value) for one in history) == [(0, 2), (1, 2)]


def commit(number: int) -> Commit:
    metrics = {"group": "g", "steps_completed": number, "metrics": {"a": number, "b": "text"}}
    return Commit(number, [Proposal(0, number, metrics=[metrics])])


def test_what_mlflow_has_is_not_logged_again_wherever_the_driver_dies(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = [commit(1), commit(2), commit(3)]
    for calls in range(1, 7):
        run = f"run-{calls}"
        left = [calls]

        def dies(name: str, left: list[int] = left) -> Any:
            real = getattr(type(client), name)

            def change(self: Any, *args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise OSError("told to fail")
                return real(self, *args, **kwargs)

            return change

        log = MlflowLog("kept", "out", run)
        with monkeypatch.context() as patch:
            patch.setattr(type(client), "set_tag", dies("set_tag"))
            patch.setattr(type(client), "log_batch", dies("log_batch"))
            for one in commits:
                log.try_add(one)
        MlflowLog("kept", "out", run).add(commits)
        [found] = [one for one in runs_of(client, "kept") if one.data.tags[RUN_TAG] == run]
        assert found.data.tags[ROUND_TAG] == "3"
        history = client.get_metric_history(found.info.run_id, "g/a")
        assert sorted(one.value for one in history) == [1, 2, 3]
        assert "g/b" not in found.data.metrics


def test_a_server_that_does_not_answer_is_told_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", refuses)
    with pytest.raises(ConfigError, match="mlflow_experiment='x': refused; set MLFLOW_TRACKING"):
        MlflowLog("x", "out", "run")
