"""Checks of what is installed here."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from sparkinfer import __version__
from sparkinfer.config import ScoringConfig
from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Outcome, as_outcome, judge
from sparkinfer.doctor.nodes import (
    DISTRIBUTION,
    PACKAGES,
    STUCK_BUILD_S,
    decode,
    lock_problems,
    node_reporter,
)
from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.models.backends import check_acceleration

if TYPE_CHECKING:
    from packaging.requirements import Requirement

IMPORT_TIMEOUT_S = 120

IN_INT8 = ("openvino", "nncf")
"""What runs models in int8."""
GRAPHS = (*IN_INT8, "onnxruntime", "onnx")
"""What runs models as graphs."""


def check_python(case: Case) -> Outcome:
    """Checks whether the package runs on this Python."""
    from packaging.specifiers import SpecifierSet

    found = f"Python {platform.python_version()}, sparkinfer {__version__}"
    try:
        wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:  # a source checkout
        return Outcome("ok", found)
    if SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        return Outcome("ok", found)
    return Outcome("error", f"{found}, which needs Python {wanted}", "use another Python")


def check_packages(case: Case) -> Outcome:
    """Checks whether the packages that are always needed are installed in a suitable version."""
    is_on_spark = case.config.engine != "local"
    required = [need for need in _requirements() if _is_needed(need, is_on_spark)]
    wrong = [problem for need in required for problem in [_requirement_problem(need)] if problem]
    versions = {name: _version(name) for name in ("pyspark", *PACKAGES[1:])}
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    advice = "install that package in an expected version, with pip"
    return judge(found, [Outcome("error", problem, advice) for problem in wrong])


def _is_needed(need: Requirement, is_on_spark: bool) -> bool:
    return need.marker is None or (is_on_spark and need.name == "pyspark")


def check_deepspeed(case: Case) -> Outcome:
    """Checks whether DeepSpeed can be used, if the options allow it."""
    wanted = {one.acceleration for one in case.config.by_model.values()}
    for acceleration in wanted:
        check_acceleration(acceleration)
    if wanted == {"none"}:
        return Outcome("ok", f"{_installed('deepspeed')}; acceleration='none' does not use it")
    if _version("deepspeed") is None:
        return Outcome("ok", "not installed; the model is run without it")
    here = decode(node_reporter((), STUCK_BUILD_S)())
    return judge(_installed("deepspeed"), [*_extra_problems("deepspeed"), *lock_problems([here])])


def check_graphs(case: Case) -> Outcome:
    """Checks what can run models as graphs on CPUs, and in int8 if that is asked for."""
    installed = [name for name in GRAPHS if _version(name) is not None]
    found = ", ".join(map(_installed, installed)) or "not installed; torch runs models on CPUs"
    problems = [problem for name in installed for problem in _extra_problems(name)]
    if any(one.dtype == "int8" for one in case.config.by_model.values()):
        advice = "run pip install openvino nncf (the extra [int8]) on every node"
        missing = [name for name in IN_INT8 if name not in installed]
        problems += [
            Outcome("error", f"{name} is not installed, but dtype='int8' needs it", advice)
            for name in missing
        ]
    return judge(found, problems)


def check_horovod(case: Case) -> Outcome:
    """Checks whether Horovod can be used, if ranks are started with it."""
    from sparkinfer.engines.horovod.launchers import choose_launcher, has_horovod

    launcher = choose_launcher(case.config.horovod.launcher)
    is_used = case.config.engine == "horovod" and launcher != "torch"
    install = (
        "run scripts/install_horovod.py, which builds it for the installed torch, and pip install "
        "'.[horovod]' in a clone of the package"
    )
    if not has_horovod():
        what = f"{_installed('horovod')}, without its torch part"
        if _version("horovod") is None:
            what = "not installed"
        if is_used:
            return Outcome("error", what, f"{install}, or use --set horovod.launcher=torch")
        if what == "not installed":
            return Outcome("ok", f"{what}; ranks would be started with pyspark's TorchDistributor")
        return Outcome("warning", what, install)
    problems = _extra_problems("horovod")
    if is_used and (reason := _import_problem("horovod.spark", "horovod.torch")):
        problems.append(Outcome("error", f"{_installed('horovod')}: {reason}", install))
    return judge(f"{_installed('horovod')} with its torch part", problems)


def check_petastorm(case: Case) -> Outcome:
    """Checks whether ranks can read with Petastorm."""
    is_asked = case.config.engine == "horovod" and case.config.horovod.reader == "petastorm"
    if _version("petastorm") is None and not is_asked:
        return Outcome("ok", "not installed; ranks would read with pyarrow")
    problem = _petastorm_problem(case.config)
    if problem is None:
        return Outcome("ok", _installed("petastorm"))
    # Unless asked to, no engine uses a Petastorm that cannot work.
    return problem if is_asked else problem._replace(status="warning")


def _petastorm_problem(config: ScoringConfig) -> Outcome | None:
    """Returns why Petastorm cannot be used here, None if it can; does not import it."""
    from sparkinfer.engines.horovod.readers import choose_reader

    advice = "use --set horovod.reader=pyarrow, or install petastorm==0.12.1 'pyarrow<15' 'numpy<2'"
    try:
        choose_reader("petastorm", config.output or "")
    except EngineUnavailableError as error:
        return as_outcome(error, advice)
    numpy = _version("numpy") or ""
    if not numpy.startswith(("0.", "1.")):
        return Outcome("error", f"{_installed('petastorm')} with numpy {numpy}, not <2", advice)
    return None


def check_mlflow(case: Case) -> Outcome:
    """Checks whether models can be fetched from MLflow."""
    if _version("mlflow") is not None:
        return judge(_installed("mlflow"), _extra_problems("mlflow"))
    advice = "run pip install mlflow (the extra [mlflow])"
    models = [str(one.model) for one in case.config.by_model.values()]
    needing = [model for model in models if model.startswith(("models:/", "runs:/"))]
    if needing:
        return Outcome("error", f"not installed, but model={needing[0]!r} needs it", advice)
    if case.config.mlflow.experiment is not None:
        return Outcome("error", "not installed, but --mlflow needs it", advice)
    return Outcome("ok", "not installed; only models:/, runs:/ and --mlflow need it")


def _version(name: str) -> str | None:
    """Returns the version of an installed package, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _installed(name: str) -> str:
    version = _version(name)
    return f"{name} {version}" if version else "not installed"


def _requirements() -> list[Requirement]:
    """Returns the requirements that the package declares; empty for a source checkout."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return []


def _requirement_problem(need: Requirement) -> str | None:
    version = _version(need.name)
    if version is None and importlib.util.find_spec(need.name):
        return None  # installed without pip's knowledge, like pyspark from a Spark folder
    if version is None:
        return f"{need.name} is not installed, expected {need.specifier}"
    if not need.specifier.contains(version, prereleases=True):
        return f"{need.name} {version} is installed, expected {need.specifier}"
    return None


def _extra_problems(name: str) -> list[Outcome]:
    """Returns a warning if an optional package's version is not the one that its extra declares."""
    needs = {str(n.specifier): n for n in _requirements() if n.name == name and n.marker}
    wrong = [problem for need in needs.values() for problem in [_requirement_problem(need)]]
    advice = f"install the version that the extra of {name} names"
    return [Outcome("warning", problem, advice) for problem in wrong if problem]


def _import_problem(*modules: str) -> str | None:
    """Returns why modules cannot be imported, tried in a separate process."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {', '.join(modules)}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"importing it takes more than {IMPORT_TIMEOUT_S} s"
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return None if done.returncode == 0 else lines[-1]
