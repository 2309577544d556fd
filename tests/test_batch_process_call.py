"""What is refused before anything is started, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sparkinfer
from sparkinfer.exceptions import ConfigError, OutputError
from tests.made_up_processor import Numbers, Quiet, Stream, Unfinished


def call(tmp_path: Path, kind: Any = Quiet, dataset: Any = None, **options: Any) -> None:
    dataset = Numbers(8) if dataset is None else dataset
    sparkinfer.torch_batch_process(kind, dataset, **{"output": str(tmp_path / "out"), **options})


@pytest.mark.parametrize("interval", [0, -1, 2.5, True, None])
def test_an_interval_is_a_number_above_0(tmp_path: Path, interval: Any) -> None:
    with pytest.raises(ConfigError, match=f"checkpoint_interval={interval}.*above 0"):
        call(tmp_path, checkpoint_interval=interval)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ({"shuffle": True}, "shuffle must be false"),
        ({"sampler": None}, "sampler cannot be given: the ranks share the batches"),
        ({"sampler": [0]}, "sampler cannot be given"),
        ({"batch_sampler": [[0]]}, "batch_sampler cannot be given"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number above 0"),
        ([("shuffle", True)], "dataloader_kwargs=.*expected a dict"),
    ],
)
def test_the_loader_gets_nothing_that_changes_the_batches(
    tmp_path: Path, loader: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        call(tmp_path, dataloader_kwargs=loader)


def test_a_batch_size_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=2 and.*batch_size=4: it is given twice"):
        call(tmp_path, batch_size=2, dataloader_kwargs={"batch_size": 4})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "8"}, "batch_size='8'"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"max_batches": "3"}, "max_batches='3': expected a whole number"),
        ({"engine": "ray"}, "engine='ray': expected one of local, spark, horovod"),
        ({"device": "tpu"}, "device='tpu': expected one of auto, cpu, cuda"),
        ({"distributed_context": object()}, "ranks are started by this call"),
        ({"output": ""}, "output='': expected a folder"),
        ({"output": None}, "output=None: expected a folder"),
        ({"hparams": [1]}, "hparams=.*expected a dict"),
        ({"hparams": {"a": object()}}, "hparams: .*expected what JSON can hold"),
    ],
)
def test_other_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(tmp_path, **options)


def test_a_dataset_has_a_length_and_rows_by_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Stream has no __len__.*map-style"):
        call(tmp_path, dataset=Stream())
    with pytest.raises(ConfigError, match="set has no __getitem__.*map-style"):
        call(tmp_path, dataset={1, 2})


def test_a_processor_is_a_class_with_all_that_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a subclass of TorchBatchProcessor"):
        call(tmp_path, kind=print)
    with pytest.raises(ConfigError, match="Unfinished lacks __init__ and process_batch"):
        call(tmp_path, kind=Unfinished)

    class Other(Quiet):
        def process_batch(self, rows: Any, batch_idx: int) -> None:
            pass

    with pytest.raises(ConfigError, match="Other.process_batch: .*called with batch= and batch_i"):
        call(tmp_path, kind=Other)

    class Alien:
        def process_batch(self, batch: Any, batch_idx: int) -> None:
            pass

    with pytest.raises(ConfigError, match="Alien is no subclass of sparkinfer.TorchBatchProcessor"):
        call(tmp_path, kind=Alien)


def test_what_cannot_be_sent_to_a_rank_is_found_before(tmp_path: Path) -> None:
    dataset = Numbers(8)
    with (tmp_path / "file").open("w") as opened:
        dataset.file = opened
        with pytest.raises(ConfigError, match="cannot be sent to the ranks.*open files and conn"):
            call(tmp_path, dataset=dataset)


def test_an_engine_on_spark_needs_a_session(tmp_path: Path) -> None:
    from pyspark.sql import SparkSession

    if SparkSession.getActiveSession() is not None:
        pytest.skip("another test's session is active in this process")
    with pytest.raises(ConfigError, match="engine='spark' without a session: give spark="):
        call(tmp_path, engine="spark")


def test_a_folder_with_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(OutputError, match="not empty: it holds 'mine.txt' and no run of a batch"):
        call(tmp_path)


def test_there_is_nothing_to_read_where_nothing_ran(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no run of a batch processor"):
        sparkinfer.read_batch_run(str(tmp_path / "out"))
