"""What the gate found before, and when that is taken again."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.exceptions import JobError
from sparkinfer.models import processor, verdicts
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.gate import Verdict
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.option_groups import GateConfig, LoadingConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of

SLOT = WorkerSlot("cpu")


def options_in(folder: Path, **more: Any) -> ModelOptions:
    given = {"acceleration": "none", "dtype": "float32", **more}
    return options_of(loading=LoadingConfig(cache_dir=str(folder)), **given)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of the models for which the gate has run."""
    ran: list[Path] = []
    keep = processor.run_gate

    def noted(path: Path, *args: Any) -> Any:
        ran.append(path)
        return keep(path, *args)

    monkeypatch.setattr(processor, "run_gate", noted)
    return ran


def tried(
    folder: Path, options: ModelOptions, ahead: RowsAhead = NOTHING_KNOWN, slot: WorkerSlot = SLOT
) -> Verdict:
    """Returns the verdict on a model, of which nothing is in memory."""
    return ModelScoring(str(folder), None, options).resolved().tried(slot, ahead)[1]


def test_a_second_trial_takes_what_the_first_found(
    classifier: Path, tmp_path: Path, tries: list[Path]
) -> None:
    first = tried(classifier, options_in(tmp_path))
    second = tried(classifier, options_in(tmp_path))
    assert len(tries) == 1
    assert first == second
    assert (first.is_remembered, second.is_remembered) == (False, True)
    assert "as an earlier run found" in second.details


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "bfloat16"},
        {"max_length": 32},
        {"gate": GateConfig(tolerance=0.5)},
        {"task": "embedding"},
    ],
)
def test_other_options_are_tried_again(
    classifier: Path, tmp_path: Path, tries: list[Path], other: dict[str, Any]
) -> None:
    tried(classifier, options_in(tmp_path))
    task = other.pop("task", "text-classification")
    loading = LoadingConfig(cache_dir=str(tmp_path))
    given = {"acceleration": "none", "dtype": "float32", "loading": loading, **other}
    verdict = tried(classifier, options_of(task, **given))
    assert len(tries) == 2
    assert not verdict.is_remembered


@pytest.mark.parametrize("what", ["version", "device", "cores", "model"])
def test_another_version_device_or_model_is_tried_again(
    classifier: Path,
    tmp_path: Path,
    tries: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    tried(classifier, options_in(tmp_path))
    slot, folder = SLOT, classifier
    if what == "version":
        monkeypatch.setattr(verdicts, "version", lambda name: "99")
    elif what == "device":
        monkeypatch.setattr(verdicts, "device_model", lambda device: "another")
    elif what == "cores":
        slot = replace(SLOT, cores=2)
    else:
        folder = tmp_path / "changed"
        folder.mkdir()
        for file in classifier.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "A", "1": "B"}}))
    tried(folder, options_in(tmp_path), slot=slot)
    assert len(tries) == 2


def test_a_longer_text_than_that_of_the_trial_is_tried(
    classifier: Path, tmp_path: Path, tries: list[Path]
) -> None:
    for longest, runs in ((40, 1), (30, 1), (50, 2), (45, 2), (None, 3), (9000, 3)):
        tried(classifier, options_in(tmp_path), RowsAhead(longest_text=longest))
        assert len(tries) == runs, longest


def test_a_verdict_without_speeds_does_not_do_for_a_long_job(
    classifier: Path, tmp_path: Path, tries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkinfer.models.speed.MEASURED_S", 0.01)
    options = options_in(tmp_path, acceleration="auto")
    tried(classifier, options, RowsAhead(text_bytes=10))
    long_job = RowsAhead(text_bytes=10**9)
    assert tried(classifier, options, long_job).speeds
    tried(classifier, options, RowsAhead(text_bytes=10))
    assert tried(classifier, options, long_job).is_remembered
    assert len(tries) == 2


def test_a_run_that_goes_on_takes_only_its_own_way(
    classifier: Path, tmp_path: Path, tries: list[Path]
) -> None:
    tried(classifier, options_in(tmp_path))
    same = options_in(tmp_path, way=PLAIN)
    assert tried(classifier, same).is_remembered
    other = options_in(tmp_path, way=Acceleration("none", "bfloat16"))
    assert tried(classifier, other).accepted == Acceleration("none", "bfloat16")
    assert len(tries) == 2


def test_what_is_not_to_be_remembered_is_not(
    classifier: Path, tmp_path: Path, tries: list[Path]
) -> None:
    forgetful = options_in(tmp_path, gate=GateConfig(remember=False))
    tried(classifier, forgetful)
    tried(classifier, forgetful)
    assert len(tries) == 2
    assert not (tmp_path / verdicts.FOLDER).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"verdict": {}}', "null"])
def test_a_damaged_file_is_as_none(
    classifier: Path, tmp_path: Path, tries: list[Path], content: str
) -> None:
    tried(classifier, options_in(tmp_path))
    [file] = (tmp_path / verdicts.FOLDER).iterdir()
    file.write_text(content)
    tried(classifier, options_in(tmp_path))
    assert len(tries) == 2


def test_a_folder_that_cannot_be_written_only_costs_the_next_trial(
    classifier: Path, tmp_path: Path, tries: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / verdicts.FOLDER).write_text("a file in its place")
    tried(classifier, options_in(tmp_path))
    tried(classifier, options_in(tmp_path))
    assert len(tries) == 2
    assert "what the gate found is not kept" in caplog.text


def test_a_way_that_was_rejected_is_tried_again_after_a_week(
    classifier: Path, tmp_path: Path, tries: list[Path]
) -> None:
    options = options_in(tmp_path, dtype="bfloat16", gate=GateConfig(tolerance=1e-9))
    assert tried(classifier, options).rejected
    assert tried(classifier, options).rejected
    assert len(tries) == 1
    [file] = (tmp_path / verdicts.FOLDER).iterdir()
    long_ago = file.stat().st_mtime - verdicts.REJECTED_S - 1
    os.utime(file, (long_ago, long_ago))
    tried(classifier, options)
    assert len(tries) == 2


def test_what_does_not_load_any_more_is_tried_again(
    classifier: Path, tmp_path: Path, tries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(classifier, options_in(tmp_path))

    def fail(*_: Any) -> None:
        raise RuntimeError("gone")

    monkeypatch.setattr(processor, "run_as", fail)
    assert not tried(classifier, options_in(tmp_path)).is_remembered
    assert len(tries) == 2


def decided(folder: Path, options: ModelOptions, verdict: Verdict) -> ModelScoring:
    return ModelScoring(str(folder), None, options).resolved().decided(verdict)


def test_a_worker_on_another_device_tries_the_way_before_it_scores(
    classifier: Path, tmp_path: Path, tries: list[Path]
) -> None:
    options = options_in(tmp_path, gate=GateConfig(remember=False))
    verdict = tried(classifier, options)
    decided(classifier, options, verdict).load(SLOT)
    assert len(tries) == 1
    elsewhere = replace(verdict, device_model="another CPU")
    decided(classifier, options, elsewhere).load(SLOT)
    assert len(tries) == 2


def test_a_worker_on_another_device_where_the_way_does_not_pass_refuses(
    classifier: Path, tmp_path: Path
) -> None:
    options = options_in(tmp_path, dtype="bfloat16")
    verdict = tried(classifier, options)
    strict = replace(options, gate=GateConfig(tolerance=1e-9))
    elsewhere = replace(verdict, device_model="another CPU")
    with pytest.raises(JobError, match="PyTorch in bfloat16, which does not work"):
        decided(classifier, strict, elsewhere).load(SLOT)
    shorter = replace(elsewhere, max_length=7)
    with pytest.raises(JobError, match="would run the model otherwise than the gate's"):
        decided(classifier, options, shorter).load(SLOT)
