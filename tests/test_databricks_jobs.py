"""The jobs of `conf/databricks`, as far as they can be looked at without a workspace.

Nothing here was sent to Databricks. Its own package says which fields there are and of what type,
this package's command line reads what the tasks pass to it, and the entry point is called as the
wrapper of Databricks' command line does.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sparkinfer import cli
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import SparkInferError
from sparkinfer.task import task
from tests.databricks_bundle import BUNDLE, CHECKOUT, deployed, read_bundle

TARGETS = ("aws", "azure", "gcp")
RUNTIMES = (
    "15.4.x-gpu-ml-scala2.12",
    "16.4.x-gpu-ml-scala2.12",
    "17.3.x-gpu-ml-scala2.13",
    "18.x-gpu-ml-scala2.13",
    "19.x-gpu-ml-scala2.13",
)
MARKERS_LEFT = ("${resources.", "${workspace.file_path}")
FOR_AI_RUNTIME = BUNDLE / "ai_runtime" / "score.sh"
INIT_SCRIPT = BUNDLE / "init" / "install_deepspeed.sh"


def jobs_of(target: str, **given: str) -> dict[str, Any]:
    jobs: dict[str, Any] = deployed(target, **given)["jobs"]
    return jobs


def tasks_of(jobs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs.items():
        for one in job["tasks"]:
            yield name, one


def clusters_of(jobs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs.items():
        for one in job.get("job_clusters", []):
            yield name, one["new_cluster"]


def script_arguments(script: Path) -> list[str]:
    """Returns what a script passes to `python -m sparkinfer`."""
    words = shlex.split(script.read_text("utf-8").partition("exec ")[2].replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "sparkinfer"]
    return words[3:]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that has the command read arguments, and returns what it would run with."""
    configs: list[ScoringConfig] = []

    def take(config: ScoringConfig, **_: Any) -> NoReturn:
        configs.append(config)
        raise SparkInferError("it is not run here")

    monkeypatch.setattr("sparkinfer.api.functions.run", take)

    def parse(arguments: Sequence[str]) -> ScoringConfig:
        assert cli.main(arguments) == cli.FAILED
        return configs.pop()

    return parse


@pytest.mark.parametrize("target", TARGETS)
def test_databricks_knows_every_field_of_the_bundle(target: str) -> None:
    from databricks.bundles.cluster_policies import ClusterPolicy
    from databricks.bundles.jobs import Job

    resources = deployed(target)
    for job in resources["jobs"].values():
        assert Job.from_dict(job).as_dict() == job
    for policy in resources["cluster_policies"].values():
        assert ClusterPolicy.from_dict(policy).as_dict() == policy


def test_a_field_that_databricks_does_not_know_would_be_seen() -> None:
    from databricks.bundles.jobs import Job

    job = jobs_of("aws")["pandas_udf"]
    job["tasks"][0]["python_wheel_task"]["entrypoint"] = "task"
    with pytest.raises(Exception, match="entrypoint"):
        Job.from_dict(job)


def test_every_variable_is_used_and_has_a_value_in_every_target() -> None:
    bundle = read_bundle()
    assert set(bundle["targets"]) == set(TARGETS)
    used = set(re.findall(r"\$\{var\.(\w+)\}", json.dumps(bundle)))
    assert used == set(bundle["variables"])
    for target in TARGETS:
        left = re.findall(r"\$\{.*?\}", json.dumps(deployed(target)))
        assert all(one.startswith(MARKERS_LEFT) for one in left)


def test_each_task_calls_an_entry_point_of_the_distribution() -> None:
    for _, one in tasks_of(jobs_of("aws")):
        if wheel := one.get("python_wheel_task"):
            points = importlib.metadata.distribution(wheel["package_name"]).entry_points
            [point] = [point for point in points if point.name == wheel["entry_point"]]
            assert point.load() is task


@pytest.mark.parametrize("target", TARGETS)
def test_each_task_passes_a_configuration_that_is_valid(target: str, parsed: Any) -> None:
    jobs = jobs_of(target, catalog="prod", schema="texts")
    configs = {
        name: parsed(one["python_wheel_task"]["parameters"])
        for name, one in tasks_of(jobs)
        if "python_wheel_task" in one
    }
    configs["ai_runtime"] = parsed(script_arguments(FOR_AI_RUNTIME))
    assert set(configs) == set(jobs)
    outputs = [config.output for config in configs.values()]
    assert len(set(outputs)) == len(outputs)  # one run at a time writes to an output
    assert all(output.startswith("/Volumes/") for output in outputs)
    on_tables = {name for name, config in configs.items() if config.input == "prod.texts.raw"}
    assert on_tables == {name for name, config in configs.items() if config.engine != "local"}
    assert configs["pandas_udf"].model == "models:/prod.texts.sentiment/1"
    assert configs["nightly"].table.name == "prod.texts.scored"
    assert configs["nightly"].incremental
    launchers = {name: config.horovod.launcher for name, config in configs.items()}
    assert launchers["horovod"] == "horovod_runner"
    assert launchers["torch_distributor"] == "torch"


def test_a_task_that_failed_is_tried_again_and_two_runs_never_meet() -> None:
    jobs = jobs_of("aws")
    assert all(job["max_concurrent_runs"] == 1 for job in jobs.values())
    assert all(one["max_retries"] >= 1 for _, one in tasks_of(jobs))
    for _, one in tasks_of(jobs):
        assert "--overwrite" not in json.dumps(one)  # a retry would throw away what is done


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_clusters_do_what_their_policy_asks(runtime: str) -> None:
    resources = deployed("aws", runtime=runtime)
    rules = json.loads(resources["cluster_policies"]["one_task_per_gpu"]["definition"])
    clusters = dict(clusters_of(resources["jobs"]))
    assert set(clusters) == {
        "pandas_udf", "nightly", "horovod", "torch_distributor", "single_node",
    }  # fmt: skip
    for cluster in clusters.values():
        assert cluster["policy_id"] == "${resources.cluster_policies.one_task_per_gpu.id}"
        given = {"cluster_type": "job", **cluster}
        given |= {f"spark_conf.{key}": value for key, value in cluster["spark_conf"].items()}
        for option, rule in rules.items():
            assert follows(rule, given[option]), option
    assert clusters["pandas_udf"]["spark_version"] == runtime
    assert clusters["horovod"]["spark_version"] == RUNTIMES[0]  # the last with Horovod


def follows(rule: dict[str, Any], value: Any) -> bool:
    """Returns whether a value follows a rule of Databricks' policy language."""
    if rule["type"] == "fixed":
        return bool(value == rule["value"])
    if rule["type"] == "allowlist":
        return value in rule["values"]
    if rule["type"] == "range":
        return bool(rule["minValue"] <= value <= rule["maxValue"])
    return re.fullmatch(rule["pattern"], value) is not None


def test_the_runtimes_of_the_docs_are_those_that_are_looked_at_here() -> None:
    page = (CHECKOUT / "docs" / "databricks.md").read_text("utf-8")
    named = re.findall(r"[\d.]+x-gpu-ml-scala2\.1[23]", page)
    assert tuple(dict.fromkeys(named)) == RUNTIMES


def test_a_job_on_the_local_engine_has_a_worker_for_each_gpu(parsed: Any) -> None:
    jobs = jobs_of("aws")
    [deployment] = jobs["ai_runtime"]["tasks"][0]["ai_runtime_task"]["deployments"]
    config = parsed(script_arguments(FOR_AI_RUNTIME))
    gpus = deployment["compute"]["accelerator_count"]
    assert (config.engine, config.num_workers) == ("local", gpus)
    config = parsed(jobs["single_node"]["tasks"][0]["python_wheel_task"]["parameters"])
    assert (config.engine, config.num_workers) == ("local", 4)


def test_files_that_the_bundle_names_are_there() -> None:
    named = re.findall(r"\$\{workspace\.file_path\}/([\w./]+)", json.dumps(deployed("aws")))
    scripts = {BUNDLE / one for one in named}
    assert scripts == {FOR_AI_RUNTIME, INIT_SCRIPT}
    for script in scripts:
        assert script.stat().st_mode & 0o111
        subprocess.run(["bash", "-n", script], check=True)


def test_the_wheel_that_is_installed_is_the_one_that_is_built() -> None:
    artifact = read_bundle()["artifacts"]["wheel"]
    assert (BUNDLE / artifact["path"]).samefile(CHECKOUT)
    assert artifact["build"].endswith("--wheel-dir dist .")
    named = set(re.findall(r'"([./]+dist/\*\.whl)"', json.dumps(deployed("aws"))))
    assert {(BUNDLE / "resources" / one).resolve().parent for one in named} == {CHECKOUT / "dist"}


@pytest.mark.parametrize(("has_deepspeed", "calls"), [(True, 1), (False, 2)])
def test_deepspeed_is_installed_where_the_runtime_has_none(
    tmp_path: Path, has_deepspeed: bool, calls: int
) -> None:
    """The interpreter is a fake that notes how it is called: nothing is installed."""
    python = tmp_path / "python"
    missing = "" if has_deepspeed else '[ "$1" = -c ] && exit 1'
    python.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\n{missing}\nexit 0\n')
    python.chmod(0o755)
    subprocess.run([INIT_SCRIPT], check=True, env={"DATABRICKS_PYTHON": str(python)})
    noted = (tmp_path / "calls").read_text().splitlines()
    assert len(noted) == calls
    assert has_deepspeed or noted[1].startswith("-m pip install --no-deps --no-build-isolation")


def test_the_question_of_the_init_script_is_python_that_runs() -> None:
    question = re.search(r"-c '(.*?)'", INIT_SCRIPT.read_text("utf-8"))
    assert question is not None
    for module, code in (("json", 0), ("not_there_at_all", 1)):
        asked = question[1].replace("deepspeed", module)
        assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == code


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_a_task_that_ends_well_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sparkinfer-spark", *arguments])
    task()


@pytest.mark.parametrize(
    ("arguments", "code"), [(["status", "nowhere"], 2), (["scroe"], 2), (["score", "--model"], 2)]
)
def test_a_task_that_fails_raises(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["sparkinfer-spark", *arguments])
    with pytest.raises(SparkInferError, match=f"exit code {code}"):
        task()


def test_the_entry_point_of_the_command_does_not_pass_a_failure_for_a_success() -> None:
    script = "from sparkinfer.__main__ import main; main(); print('went on')"
    done = subprocess.run(
        [sys.executable, "-c", script, "status", "nowhere"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
