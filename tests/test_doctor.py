"""What the doctor finds here, on a real Spark and with real models; where a fault is made up, the
test says so."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.doctor.case import ExaminedConfig
from sparkinfer.doctor.cluster import gpu_problems, settings_problems
from sparkinfer.doctor.examination import CHECKS, examine
from sparkinfer.doctor.findings import Finding, as_json, has_errors, print_findings
from sparkinfer.doctor.folders import hosts_without, judge_disk
from sparkinfer.doctor.nodes import NodeReport, node_problems, node_reporter
from sparkinfer.exceptions import ConfigError
from sparkinfer.models.backends import BACKENDS
from sparkinfer.spark.accelerators import HostReport
from tests.standalone_cluster import StandaloneCluster, run_driver

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PLAIN: dict[str, Any] = {"acceleration": "none", "dtype": "float32"}
LOCAL: dict[str, Any] = {"engine": "local", **PLAIN}

HERE = NodeReport("driver", "3.11.7", {"torch": "2.13.0", "sparkinfer": "0.1.0"}, {}, ())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1, 2], "review": ["good", "bad film"]}), path)
    return path


def findings_of(**options: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(ExaminedConfig.load(**options))}


def finding_of(check: str, **options: Any) -> Finding:
    """Returns one finding; the checks after it do not run."""
    found = examine(ExaminedConfig.load(**options))
    return next(finding for finding in found if finding.check == check)


def statuses(findings: Mapping[str, Finding]) -> dict[str, str]:
    return {name: finding.status for name, finding in findings.items()}


@pytest.mark.spark
def test_a_run_that_would_work_has_no_errors_and_leaves_nothing(
    spark: SparkSession, source: Path, classifier: Path
) -> None:
    before = sorted(source.parent.iterdir())
    config = ScoringConfig(
        model=str(classifier),
        input=str(source),
        input_col="review",
        output=str(source.parent / "deep" / "out"),
        master="local[2]",
        dtype="float32",
        acceleration="none",
    )
    findings = list(examine(config))
    assert [finding.check for finding in findings] == [check.name for check in CHECKS]
    assert not has_errors(findings)
    found = {finding.check: finding.found for finding in findings}
    assert "local[2]" in found["spark"]
    assert "2 task slots" in found["executors"]
    assert found["workers"] == "2 x cpu"
    assert "'review'" in found["input"]
    assert "PyTorch in float32 on cpu" in found["gate"]
    assert "NEGATIVE, POSITIVE" in found["gate"]
    assert all(
        (finding.advice == "") == (finding.status in ("ok", "skipped")) for finding in findings
    )
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.spark
def test_a_master_other_than_that_of_the_session_is_an_error_and_what_needs_spark_is_skipped(
    spark: SparkSession, source: Path
) -> None:
    findings = findings_of(master="local[5]", input=str(source), **PLAIN)
    assert findings["spark"].status == "error"
    assert "a Spark session on 'local[2]' is active" in findings["spark"].found
    for name in ("settings", "executors", "gpus", "engine", "workers", "input", "gate"):
        assert findings[name].status == "skipped", name
        assert findings[name].found == "it needs 'spark', which has an error"
    # These need no Spark.
    assert (findings["disk"].status, findings["model"].status) == ("ok", "ok")


@pytest.mark.spark
def test_an_absent_gpu_that_was_asked_for_is_an_error(spark: SparkSession) -> None:
    findings = findings_of(device="cuda", **PLAIN)
    assert findings["gpus"].status == "error"
    assert "device='cuda'" in findings["gpus"].found
    assert "--device cpu" in findings["gpus"].advice
    assert statuses(findings)["workers"] == statuses(findings)["gate"] == "skipped"
    assert findings["gate"].found == "it needs 'gpus', which has an error"


@pytest.mark.spark
def test_more_workers_than_slots_are_a_warning(spark: SparkSession) -> None:
    finding = finding_of("workers", num_workers=3, **PLAIN)
    assert (finding.status, finding.found[:7]) == ("warning", "3 x cpu")
    assert "--num-workers 2" in finding.advice


@pytest.mark.spark
def test_settings_that_slow_a_run_down_are_warnings(spark: SparkSession) -> None:
    key = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(key)
    spark.conf.set(key, "0")
    try:
        finding = finding_of("settings")
    finally:
        spark.conf.set(key, before)
    assert (finding.status, "no limit" in finding.found) == ("warning", True)


@pytest.mark.spark
def test_executors_that_see_another_disk_are_named(spark: SparkSession, tmp_path: Path) -> None:
    assert hosts_without(spark, 2, str(tmp_path)) == set()
    assert len(hosts_without(spark, 2, str(tmp_path / "only-on-the-driver"))) == 1


@pytest.mark.spark
def test_the_horovod_engine_is_examined_without_being_started(
    spark: SparkSession, tmp_path: Path
) -> None:
    options = {"engine": "horovod", "horovod": {"launcher": "torch", "reader": "pyarrow"}}
    finding = finding_of("engine", output=str(tmp_path / "out"), **options)
    assert finding.found == "horovod, launcher torch, reader pyarrow"


def examine_until_gpus(spark, output):
    """What the driver of a cluster runs."""
    from itertools import islice

    from sparkinfer.doctor.case import ExaminedConfig
    from sparkinfer.doctor.examination import CHECKS, examine
    from sparkinfer.doctor.folders import hosts_without

    config = ExaminedConfig.load(acceleration="none", output=output)
    count = 1 + [check.name for check in CHECKS].index("gpus")
    found = [[f.check, f.status, f.found] for f in islice(examine(config), count)]
    return [*found, ["unseen", "", str(hosts_without(spark, 2, output))]]


@pytest.mark.spark
def test_gpus_that_spark_assigns_and_torch_does_not_see_are_an_error(
    standalone_cluster: StandaloneCluster, tmp_path: Path
) -> None:
    """The cluster is real, and so is torch; the GPUs are only in the workers' settings."""
    conf = {
        "spark.executor.resource.gpu.amount": "1",
        "spark.task.resource.gpu.amount": "1",
        "spark.executor.instances": "2",
    }
    found = run_driver(standalone_cluster, examine_until_gpus, {"output": str(tmp_path)}, conf)
    by_check = {check: (status, text) for check, status, text in found}
    assert by_check["settings"] == ("ok", "1 core(s) and 1 GPU(s) per task")
    assert by_check["executors"][0] == "ok"
    assert "2 task slots" in by_check["executors"][1]
    assert by_check["gpus"][0] == "error"
    assert "Spark assigns GPUs to tasks there, but torch sees none" in by_check["gpus"][1]
    assert by_check["unseen"][1] == "set()"


@pytest.mark.spark
def test_an_unknown_master_ends_with_status_1_and_parseable_json() -> None:
    script = (
        "import sys\n"
        "from sparkinfer.doctor.case import ExaminedConfig\n"
        "from sparkinfer.doctor.examination import examine\n"
        "from sparkinfer.doctor.findings import as_json, has_errors\n"
        "findings = list(examine(ExaminedConfig.load(master='nowhere', acceleration='none')))\n"
        "print(as_json(findings)); sys.exit(has_errors(findings))"
    )
    # A process of its own, for a session is active in this one.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    found = {finding["check"]: finding for finding in document["findings"]}
    assert found["java"]["status"] == "ok"
    assert "java" in found["java"]["found"]
    assert found["spark"]["status"] == "error"
    assert "'nowhere'" in found["spark"]["found"]
    assert "--master" in found["spark"]["advice"]
    assert document["summary"]["error"] == 1


def test_the_local_engine_is_examined_without_spark(source: Path, classifier: Path) -> None:
    findings = findings_of(model=str(classifier), input=str(source), input_col="review", **LOCAL)
    of_spark = {"java", "spark", "settings", "executors", "gpus"}
    assert {name for name in findings if findings[name].status == "skipped"} == {
        *of_spark,
        *("output", "tables", "vectors"),
    }
    assert not has_errors(findings.values())
    assert findings["gate"].status == "ok"
    assert not any(finding.advice for finding in findings.values() if finding.status == "skipped")


def test_without_any_option_the_carried_model_stands_in() -> None:
    findings = findings_of(**LOCAL)
    assert "the demo's" in findings["model"].found
    assert statuses(findings)["input"] == statuses(findings)["output"] == "skipped"
    assert findings["gate"].status == "ok"


def test_an_input_column_that_was_not_given_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["good"]}), path)
    assert finding_of("input", input=str(path), **LOCAL).status == "warning"
    assert finding_of("input", input=str(path), input_col="text", **LOCAL).status == "ok"


def test_a_missing_column_is_an_error_that_names_the_nearest(source: Path) -> None:
    finding = finding_of("input", input=str(source), input_col="reviw", **LOCAL)
    assert finding.status == "error"
    assert "no such column; the input has id, review" in finding.found
    assert finding.advice == "did you mean 'review'?"


def test_a_column_that_is_not_there_keeps_the_model_from_being_tried(source: Path) -> None:
    findings = findings_of(input=str(source), input_col="reviw", **LOCAL)
    gate = findings["gate"]
    assert (gate.status, gate.found) == ("skipped", "it needs 'input', which has an error")
    assert gate.advice == ""


def test_a_missing_model_is_an_error_and_the_gate_is_skipped() -> None:
    findings = findings_of(model="/nowhere/model", **LOCAL)
    assert findings["model"].status == "error"
    assert "/nowhere/model" in findings["model"].found
    assert findings["model"].advice
    assert (findings["gate"].status, findings["gate"].found) == (
        "skipped",
        "it needs 'model', which has an error",
    )


def test_a_model_that_does_not_load_is_an_error_of_the_gate(
    tmp_path: Path, classifier: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in classifier.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:100] if "safetensors" in file.name else content)
    findings = findings_of(model=str(broken), **LOCAL)
    assert findings["gate"].status == "error"
    assert "does not load" in findings["gate"].found


def test_a_way_that_the_gate_rejects_is_a_warning(classifier: Path) -> None:
    # No bfloat16 model is this near to float32: the rejection is a real one.
    options = {**LOCAL, "dtype": "bfloat16", "gate": {"tolerance": 1e-12}}
    finding = finding_of("gate", model=str(classifier), **options)
    assert finding.status == "warning"
    assert "PyTorch in float32" in finding.found
    assert "not used: PyTorch in bfloat16: differs from float32" in finding.found


def test_an_output_that_cannot_be_written_is_an_error() -> None:
    finding = finding_of("output", output="/proc/nowhere/out", **LOCAL)
    assert finding.status == "error"
    assert "no file can be written in '/proc'" in finding.found
    assert "name another folder" in finding.advice


def test_an_output_with_foreign_files_is_an_error(source: Path) -> None:
    finding = finding_of("output", output=str(source.parent), **LOCAL)
    assert (finding.status, "in.parquet" in finding.found) == ("error", True)


def test_an_absent_gpu_is_an_error_of_the_local_engine_too() -> None:
    findings = findings_of(device="cuda", **LOCAL)
    assert (findings["workers"].status, findings["gate"].status) == ("error", "skipped")


def test_a_check_that_raises_is_an_error_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise ZeroDivisionError("made up\nsecond line")

    monkeypatch.setattr("platform.python_version", fail)
    finding = finding_of("python")
    assert finding.status == "error"
    assert finding.found == "ZeroDivisionError: made up"
    assert "--debug" in finding.advice


def fake_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name not in versions:
            return real(name)
        if (fake := versions[name]) is None:
            raise metadata.PackageNotFoundError(name)
        return fake

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"petastorm": "0.13.1"}, "0.13 skips rows"),
        ({"petastorm": "0.12.1", "numpy": "2.2.0"}, "numpy 2.2.0"),
        ({"petastorm": None}, "not installed"),
    ],
)
@pytest.mark.parametrize("reader", ["auto", "petastorm"])
def test_a_petastorm_that_cannot_work_is_told(
    monkeypatch: pytest.MonkeyPatch, reader: str, versions: dict[str, str | None], said: str
) -> None:
    """The versions are fakes: none of these is installed here."""
    monkeypatch.setattr(pa, "__version__", "14.0.2")
    fake_versions(monkeypatch, **versions)
    finding = finding_of(
        "petastorm", engine="horovod", horovod={"reader": reader, "launcher": "torch"}
    )
    harmless = "ok" if versions["petastorm"] is None else "warning"
    assert finding.status == ("error" if reader == "petastorm" else harmless)
    assert said in finding.found


def test_pyarrow_15_is_told_with_petastorm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both versions are fakes."""
    monkeypatch.setattr(pa, "__version__", "15.0.2")
    fake_versions(monkeypatch, petastorm="0.12.1")
    finding = finding_of("petastorm")
    assert (finding.status, "pyarrow 15.0.2" in finding.found) == ("warning", True)
    assert "pyarrow<15" in finding.advice


def test_horovod_without_its_part_for_torch_is_an_error_only_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The build without torch is a fake."""
    fake_versions(monkeypatch, horovod="0.28.1")
    monkeypatch.setattr("sparkinfer.engines.horovod.launchers.has_horovod", lambda: False)
    asked = finding_of("horovod", engine="horovod", horovod={"launcher": "horovod"})
    assert asked.status == "error"
    assert "install_horovod.py" in asked.advice
    assert finding_of("horovod").status == "warning"


def test_horovod_that_does_not_match_torch_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The broken build is a fake: a package that fails as a library with other symbols does."""
    package = tmp_path / "horovod"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('mpi_lib_v2.so: undefined symbol')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("sparkinfer.engines.horovod.launchers.has_horovod", lambda: True)
    fake_versions(monkeypatch, horovod="0.28.1")
    finding = finding_of("horovod", engine="horovod", horovod={"launcher": "horovod"})
    assert finding.status == "error"
    assert "undefined symbol" in finding.found


def test_a_model_of_mlflow_needs_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is absent is a fake."""
    fake_versions(monkeypatch, mlflow=None)
    assert finding_of("mlflow", model="models:/sentiment/1").status == "error"
    assert finding_of("mlflow").status == "ok"


def test_a_package_that_is_too_old_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old version is a fake."""
    fake_versions(monkeypatch, transformers="4.30.0")
    finding = finding_of("packages")
    assert finding.status == "error"
    assert "transformers 4.30.0 is installed, expected >=4.41" in finding.found


def test_what_runs_graphs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, openvino="2026.4.1", nncf=None, onnxruntime=None, onnx=None)
    finding = finding_of("graphs")
    assert (finding.status, finding.found) == ("ok", "openvino 2026.4.1")
    finding = finding_of("graphs", dtype="int8")
    assert finding.status == "error"
    assert "nncf is not installed, but dtype='int8' needs it" in finding.found
    fake_versions(monkeypatch, openvino="2024.6.0")
    finding = finding_of("graphs")
    assert finding.status == "warning"
    assert "openvino 2024.6.0 is installed, expected >=2025.1" in finding.found


def test_a_lock_left_of_a_killed_build_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_versions(monkeypatch, deepspeed="0.19.8")
    monkeypatch.setattr(type(BACKENDS["deepspeed"]), "problem", lambda self: None)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    assert finding_of("deepspeed").status == "ok"  # somebody may be building
    os.utime(lock, (0, 0))
    finding = finding_of("deepspeed")
    assert finding.status == "warning"
    assert str(lock) in finding.found
    assert finding.advice == "remove that file"


@pytest.mark.spark
def test_the_report_of_a_node_needs_nothing_of_ours() -> None:
    from pyspark import cloudpickle

    pickled = cloudpickle.dumps(node_reporter(("sparkinfer", "nothing-of-this-name"), 900))
    script = (
        f"import pickle, sys; sys.modules['sparkinfer'] = None\nprint(pickle.loads({pickled!r})())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    report = NodeReport(**json.loads(done.stdout))
    assert report.python == ".".join(map(str, sys.version_info[:3]))
    assert report.packages["nothing-of-this-name"] is None
    assert all(size > 0 for size in report.free_bytes.values())


def test_nodes_like_the_driver_are_no_problem() -> None:
    # Copies of the sources have no version to compare.
    packages = {**HERE.packages, "sparkinfer": "?"}
    nodes = [replace(HERE, host="a", python="3.11.9"), replace(HERE, host="b", packages=packages)]
    assert node_problems(HERE, nodes) == []


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"python": "3.12.1"}, "error", "Python 3.12.1, the driver has 3.11.7"),
        ({"packages": {"torch": "2.13.0", "sparkinfer": None}}, "error", "sparkinfer not inst"),
        ({"packages": {"torch": "2.9.0", "sparkinfer": "0.1.0"}}, "warning", "torch 2.9.0"),
        ({"stuck_locks": ["/c/lock"]}, "warning", "a: /c/lock is left"),
    ],
)
def test_nodes_unlike_the_driver_are_problems(
    change: dict[str, Any], status: str, said: str
) -> None:
    nodes = [replace(HERE, host="a", **change), replace(HERE, host="a", **change)]
    problem = node_problems(HERE, nodes)
    assert [one.status for one in problem] == [status]  # told once for a host
    assert said in problem[0].found
    assert problem[0].advice


GPU = "spark.executor.resource.gpu.amount"
TASK_GPU = "spark.task.resource.gpu.amount"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({GPU: "4", TASK_GPU: "1", "spark.executor.cores": "8"}, None),
        ({GPU: "4", TASK_GPU: "1", "spark.executor.cores": "8", "spark.task.cpus": "4"}, "busy"),
        ({GPU: "1"}, "Spark assigns to no task"),
        ({GPU: "4", TASK_GPU: "2"}, "each task loads one model"),
        ({"spark.python.worker.reuse": "false"}, "loaded again for each task"),
        ({"spark.python.worker.idleTimeoutSeconds": "60"}, "killed while it waits"),
    ],
)
def test_settings_are_judged(settings: dict[str, str], said: str | None) -> None:
    problems = settings_problems(settings)
    assert len(problems) == (said is not None)
    assert all(said in problem.found and problem.advice for problem in problems if said)


@pytest.mark.parametrize(
    ("report", "device", "is_assigned", "status"),
    [
        (HostReport(2, 2, has_driver=True), "auto", True, None),
        (HostReport(2, 0, has_driver=False), "auto", False, None),
        (HostReport(2, 0, has_driver=True), "cpu", False, None),
        (HostReport(2, 0, has_driver=True), "auto", False, "warning"),
        (HostReport(2, 0, has_driver=True), "auto", True, "error"),
        (HostReport(1, 4, has_driver=True), "auto", False, "warning"),
        (HostReport(2, 2, has_driver=True), "cpu", False, "warning"),
    ],
)
def test_gpus_are_judged(
    report: HostReport, device: str, is_assigned: bool, status: str | None
) -> None:
    """The hosts are made up: there is no GPU here."""
    problems = gpu_problems({"a": report}, device, is_assigned=is_assigned)
    assert [problem.status for problem in problems] == ([status] if status else [])


def test_a_full_disk_is_a_warning() -> None:
    assert judge_disk({"/tmp on a": 2**40, "/tmp on b": 2**40}).status == "ok"
    full = judge_disk({"/tmp on a": 2**40, "/tmp on b": 2**20})
    assert (full.status, full.found) == ("warning", "0.0 GiB free in /tmp on b")


@pytest.mark.parametrize(
    "model", ["s3://AKIAX:se/cr3tword@bucket/m", "https://u:se@cr3tword@host/m?sig=cr3tword"]
)
def test_no_secret_is_printed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    caplog.set_level("DEBUG", "sparkinfer.doctor")  # tracebacks
    monkeypatch.setenv("STORE_PASSWORD", "cr3tword")
    findings = examine(ExaminedConfig.load(model=model, output=model, **LOCAL))
    stream = io.StringIO()
    printed = print_findings(findings, stream)
    assert "cr3t" not in stream.getvalue() + as_json(printed)
    monkeypatch.delenv("STORE_PASSWORD")
    assert "cr3t" not in finding_of("model", model=model, **LOCAL).found
    assert "Traceback" in caplog.text
    assert "cr3t" not in caplog.text


def test_findings_are_printed_one_a_line_with_the_advice_below() -> None:
    stream = io.StringIO()
    findings = [
        Finding("java", "ok", "17", ""),
        Finding("spark", "error", "no answer", "check --master"),
        Finding("gpus", "skipped", "it needs 'spark'", "see to it"),
    ]
    assert print_findings(iter(findings), stream) == findings
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines if line] == [
        "ok",
        "ERROR",
        "->",
        "skipped",
        "->",
        "3",
    ]
    assert lines[2].startswith("     ")
    assert lines[-1] == "3 checks: 1 ok, 1 error, 1 skipped"
    assert has_errors(findings)
    assert not has_errors(findings[:1])


def test_json_holds_every_finding_and_the_counts() -> None:
    document = json.loads(as_json([Finding("java", "warning", "8", "install 17")]))
    assert document["findings"] == [
        {"check": "java", "status": "warning", "found": "8", "advice": "install 17"}
    ]
    assert document["summary"] == {"ok": 0, "warning": 1, "error": 0, "skipped": 0}


def test_an_unknown_option_is_wrong_use() -> None:
    with pytest.raises(ConfigError, match="'modle'"):
        ExaminedConfig.load(None, ["modle=x"])


def test_a_file_and_overrides_win_over_the_stand_ins(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: from-file\ninput_col: a\n")
    config = ExaminedConfig.load(file, ["input_col=b"])
    assert (config.model, config.input_col) == ("from-file", "b")
    assert {"model", "input_col"} <= config.given


def test_functions_are_examined_in_place_of_a_model(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"]}), source)
    config = ExaminedConfig(engine="local", input=str(source), fn="tests.made_up_functions:shout")
    found = {finding.check: finding for finding in examine(config)}
    assert found["gate"].found == (
        "tests.made_up_functions:shout on cpu, columns id bigint, loud string"
    )
    assert found["input"].found.endswith("with id, text")
    assert found["model"].status == "skipped"
