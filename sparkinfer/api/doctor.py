"""What would go wrong in a run, found before it: installation, cluster, input, output, model.

The checks are a table, cheapest first. Each one looks at one thing and returns what it found; one
that raises becomes an error with the message, and those that need what it would have found are
skipped. Nothing is written but an empty file beside the output, which is removed at once.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

from pydantic import Field

from sparkinfer import __version__
from sparkinfer.api.functions import qualified, spark_engine
from sparkinfer.config import PathText, ScoringConfig
from sparkinfer.engines.base import Engine, InputTable
from sparkinfer.exceptions import EngineUnavailableError, OutputError, SparkInferError
from sparkinfer.jobs.output import Output
from sparkinfer.models.acceleration import check_available
from sparkinfer.models.sources import ModelSource, cache_folder, resolve
from sparkinfer.models.tasks import get_task
from sparkinfer.redaction import without_secrets
from sparkinfer.spark.accelerators import (
    CORES_PER_TASK,
    GPUS_PER_EXECUTOR,
    GPUS_PER_TASK,
    HostReport,
    choose_kind,
    count_slots,
    owns_whole_gpus,
    probe_hosts,
    refuse_gpu_tasks_in_local_mode,
    why_slots_are_unknown,
)
from sparkinfer.spark.errors import explain
from sparkinfer.storage import exists, file_system, join, remove, renames_atomically, write_text

if TYPE_CHECKING:
    import pyarrow as pa
    from packaging.requirements import Requirement
    from pyspark.sql import SparkSession

Status = Literal["ok", "warning", "error", "skipped"]

PACKAGES = ("sparkinfer", "torch", "transformers", "pyarrow", "pandas", "numpy")
"""What executors cannot do without."""
EXTRAS = ("deepspeed", "horovod", "petastorm")
"""What executors need where the driver has it."""

LOW_DISK_BYTES = 2**30
"""Less holds neither a model of usual size nor what Spark spills of a table."""

STUCK_BUILD_S = 900
"""Age of a build lock at which nobody builds any more: DeepSpeed's builds take 100 to 170 s."""

IMPORT_TIMEOUT_S = 120

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: name of the check.
        status: `error`: a run would fail; `warning`: it would be slower or other than expected;
            `skipped`: could not be checked.
        found: what there is, in one line and without secrets.
        advice: what to do; empty when ok.
    """

    check: str
    status: Status
    found: str
    advice: str


class ExaminedConfig(ScoringConfig):
    """The options of a run, none of them required; the carried model stands in for an absent one.

    `model_fields_set` tells which were given.
    """

    model: PathText = Field(
        default_factory=lambda: str(resources.files("sparkinfer.demo") / "model"), min_length=1
    )
    input_col: str = Field(default="text", min_length=1)


class Outcome(NamedTuple):
    """A finding before it has the name of its check."""

    status: Status
    found: str
    advice: str = ""


@dataclass
class _Case:
    """What is examined, and what checks so far have found; absent where they failed."""

    config: ScoringConfig
    given: frozenset[str]
    spark: SparkSession = field(init=False)
    slots: int | None = field(init=False, default=None)
    nodes: Sequence[NodeReport] = ()
    engine: Engine = field(init=False)
    table: InputTable | None = None
    source: ModelSource = field(init=False)


@dataclass(frozen=True)
class NodeReport:
    """What one Python process sees on its machine.

    Attributes:
        host: name of the machine.
        python: version in full.
        packages: version by name; `?` for one without metadata, None for an absent one.
        free_bytes: by folder for temporary files.
        stuck_locks: lock files of torch extensions that nobody builds any more.
    """

    host: str
    python: str
    packages: Mapping[str, str | None]
    free_bytes: Mapping[str, int]
    stuck_locks: Sequence[str]


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        name: names it to the user.
        run: returns the outcome, or raises.
        remedy: advice for an error whose message has none.
        needs: names of the checks that must not have failed.
        on_spark: has no meaning for `engine="local"`.
    """

    name: str
    run: Callable[[_Case], Outcome]
    remedy: str
    needs: tuple[str, ...] = ()
    on_spark: bool = False


def examine(config: ScoringConfig) -> Iterator[Finding]:
    """Yields one finding for each check, in the order of `CHECKS`, as soon as there is one.

    Cost: a Spark session (an active one is used), a few small jobs, the model fetched and loaded in
    one worker. The session is left as it is, as a run leaves it.

    Args:
        config: options of the run; `ExaminedConfig` where not all of them are known yet.
    """
    # Workers unpickle it: what they get is what a run would send.
    case = _Case(config.replace(), frozenset(config.model_fields_set))
    failed: dict[str, str] = {}
    for check in CHECKS:
        outcome = _run(check, case, failed)
        found, advice = (
            " ".join(_without_known_secrets(text, config).split()) for text in outcome[1:]
        )
        yield Finding(check.name, outcome.status, found, advice)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Returns whether a run would fail."""
    return any(finding.status == "error" for finding in findings)


def print_findings(findings: Iterable[Finding], stream: TextIO) -> list[Finding]:
    """Prints each finding as soon as it is there, then the counts; returns all of them."""
    printed = []
    for finding in findings:
        mark = "ERROR" if finding.status == "error" else finding.status
        print(f"{mark:<8} {finding.check:<11} {finding.found}", file=stream, flush=True)
        if finding.advice:
            print(f"{'':<20} -> {finding.advice}", file=stream, flush=True)
        printed.append(finding)
    counts = ", ".join(
        f"{count} {status}{'s' if count > 1 and status in ('warning', 'error') else ''}"
        for status, count in _summary(printed).items()
        if count
    )
    print(f"\n{len(printed)} checks: {counts}", file=stream, flush=True)
    return printed


def as_json(findings: Iterable[Finding]) -> str:
    """Returns the findings and how many there are of each status as one JSON document."""
    listed = list(findings)
    document = {
        "sparkinfer": __version__,
        "findings": [asdict(finding) for finding in listed],
        "summary": _summary(listed),
    }
    return json.dumps(document, indent=1)


def _summary(findings: Sequence[Finding]) -> dict[str, int]:
    counts = Counter(finding.status for finding in findings)
    return {status: counts[status] for status in ("ok", "warning", "error", "skipped")}


def _run(check: Check, case: _Case, failed: dict[str, str]) -> Outcome:
    """Returns the outcome of a check.

    Args:
        check: what to look at.
        case: what is examined.
        failed: by the name of each check without a result, the one that is to blame; added to.
    """
    if check.on_spark and case.config.engine == "local":
        return Outcome(
            "skipped",
            "engine='local' works without Spark",
            "use --engine pandas_udf or --engine horovod to have it checked",
        )
    blamed = next((failed[name] for name in check.needs if name in failed), None)
    if blamed is not None:
        failed[check.name] = blamed
        return Outcome("skipped", f"it needs {blamed!r}", f"see to {blamed!r} and run again")
    try:
        outcome = check.run(case)
    except Exception as error:  # whatever a check raises is what a run would meet
        text = _without_known_secrets(traceback.format_exc(), case.config)
        logger.debug("check %r: %s", check.name, text)
        outcome = _as_outcome(error, check.remedy)
    if outcome.status == "error":
        failed[check.name] = check.name
    return outcome


def _as_outcome(error: Exception, remedy: str) -> Outcome:
    """Returns an error in two parts: what is wrong, and what to do."""
    if not isinstance(error, SparkInferError):
        return Outcome("error", f"{type(error).__name__}: {explain(error)}", remedy)
    found, advice = error.message, remedy
    for separator in (". Remedy: ", "; "):  # the last part of our messages says what to do
        if separator in error.message:
            found, _, advice = error.message.rpartition(separator)
            break
    cause = f" ({explain(error.__cause__)})" if isinstance(error.__cause__, Exception) else ""
    return Outcome("error", found + cause, advice)


def _without_known_secrets(text: str, config: ScoringConfig) -> str:
    """Returns the text without passwords, signatures, tokens and keys.

    What an environment variable or a Spark setting holds is a secret if its name says so.
    """
    for name, value in {**os.environ, **config.spark_conf}.items():
        if len(value) >= 8 and re.search(r"token|secret|passw|credential|key", name, re.IGNORECASE):
            text = text.replace(value, "***")
    return without_secrets(text)


def _judge(found: str, problems: Sequence[Outcome]) -> Outcome:
    """Returns ok with what was found, or all problems as one."""
    if not problems:
        return Outcome("ok", found)
    worst: Status = "error" if any(p.status == "error" for p in problems) else "warning"
    advice = dict.fromkeys(problem.advice for problem in problems)
    return Outcome(worst, "; ".join(problem.found for problem in problems), "; ".join(advice))


# What is installed here.


def _check_python(case: _Case) -> Outcome:
    from packaging.specifiers import SpecifierSet

    found = f"Python {platform.python_version()}, sparkinfer {__version__}"
    try:
        wanted = metadata.metadata("sparkinfer")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:  # a copy of the sources
        return Outcome("ok", found)
    if SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        return Outcome("ok", found)
    return Outcome("error", f"{found}, which needs Python {wanted}", "use another Python")


def _check_packages(case: _Case) -> Outcome:
    required = [need for need in _requirements() if need.marker is None]
    wrong = [problem for need in required for problem in [_requirement_problem(need)] if problem]
    shown = (name for name in ("pyspark", *PACKAGES[1:]))
    found = ", ".join(f"{name} {_version(name)}" for name in shown)
    advice = "install the package anew: pip install sparkinfer"
    return _judge(found, [Outcome("error", problem, advice) for problem in wrong])


def _check_deepspeed(case: _Case) -> Outcome:
    check_available(case.config)
    if case.config.acceleration == "none":
        return Outcome("ok", f"{_installed('deepspeed')}; acceleration='none' does not use it")
    if _version("deepspeed") is None:
        return Outcome("ok", "not installed; the model is run as it is")
    here = _decode(_node_reporter((), STUCK_BUILD_S)())
    return _judge(_installed("deepspeed"), [*_extra_problems("deepspeed"), *_lock_problems([here])])


def _check_horovod(case: _Case) -> Outcome:
    from sparkinfer.engines.launchers import choose_launcher, has_horovod

    launcher = choose_launcher(case.config.horovod.launcher)
    is_used = case.config.engine == "horovod" and launcher != "torch"
    install = (
        "run scripts/install_horovod.py, which builds it for the installed torch, and pip install "
        "'sparkinfer[horovod]'"
    )
    if not has_horovod():
        what = f"{_installed('horovod')}, without a part for torch"
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
    return _judge(f"{_installed('horovod')} with its part for torch", problems)


def _check_petastorm(case: _Case) -> Outcome:
    is_asked = case.config.engine == "horovod" and case.config.horovod.reader == "petastorm"
    if _version("petastorm") is None and not is_asked:
        return Outcome("ok", "not installed; ranks would read with pyarrow")
    problem = _petastorm_problem(case.config)
    if problem is None:
        return Outcome("ok", _installed("petastorm"))
    # By itself no engine takes a Petastorm that cannot work.
    return problem if is_asked else problem._replace(status="warning")


def _petastorm_problem(config: ScoringConfig) -> Outcome | None:
    """Returns why Petastorm cannot be used here, None if it can; does not import it."""
    from sparkinfer.engines.readers import choose_reader

    advice = "use --set horovod.reader=pyarrow, or install petastorm==0.12.1 'pyarrow<15' 'numpy<2'"
    try:
        choose_reader("petastorm", config.output or "")
    except EngineUnavailableError as error:
        return _as_outcome(error, advice)
    numpy = _version("numpy") or ""
    if not numpy.startswith(("0.", "1.")):
        return Outcome("error", f"{_installed('petastorm')} with numpy {numpy}, not <2", advice)
    return None


def _check_mlflow(case: _Case) -> Outcome:
    if _version("mlflow") is not None:
        return _judge(_installed("mlflow"), _extra_problems("mlflow"))
    if case.config.model.startswith(("models:/", "runs:/")):
        advice = "run pip install 'sparkinfer[mlflow]'"
        return Outcome("error", f"not installed, and model={case.config.model!r} needs it", advice)
    return Outcome("ok", "not installed; only models:/ and runs:/ need it")


def _version(name: str) -> str | None:
    """Returns the version of an installed package, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _installed(name: str) -> str:
    version = _version(name)
    return f"{name} {version}" if version else "not installed"


def _requirements() -> list[Requirement]:
    """Returns what the package declares to need; empty for a copy of the sources."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in metadata.requires("sparkinfer") or ()]
    except metadata.PackageNotFoundError:
        return []


def _requirement_problem(need: Requirement) -> str | None:
    version = _version(need.name)
    if version is None and importlib.util.find_spec(need.name):
        return None  # it is there without pip knowing it, as pyspark of a Spark folder
    if version is None:
        return f"{need.name} is not installed, expected {need.specifier}"
    if not need.specifier.contains(version, prereleases=True):
        return f"{need.name} {version} is installed, expected {need.specifier}"
    return None


def _extra_problems(name: str) -> list[Outcome]:
    """Returns a warning if an optional package has not the version that its extra declares."""
    needs = {str(n.specifier): n for n in _requirements() if n.name == name and n.marker}
    wrong = [problem for need in needs.values() for problem in [_requirement_problem(need)]]
    advice = f"install the version that the extra of {name} names"
    return [Outcome("warning", problem, advice) for problem in wrong if problem]


def _import_problem(*modules: str) -> str | None:
    """Returns why modules cannot be imported, tried in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {', '.join(modules)}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"importing it takes more than {IMPORT_TIMEOUT_S} s"
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return None if done.returncode == 0 else lines[-1]


# Spark and what its executors have.


def _check_java(case: _Case) -> Outcome:
    import pyspark

    from sparkinfer.spark.java import ensure_java

    if "PYSPARK_GATEWAY_PORT" in os.environ or pyspark.sql.SparkSession.getActiveSession():
        return Outcome("ok", "Spark runs already")
    return Outcome("ok", f"{ensure_java()}, which pyspark {pyspark.__version__} supports")


def _check_spark(case: _Case) -> Outcome:
    import pyspark

    from sparkinfer.spark.session import start_session

    case.spark = start_session(case.config)
    case.config = qualified(case.config, case.spark)
    found = f"Spark {case.spark.version} on {_master(case.spark)}"
    here, there = (text.split(".")[:2] for text in (pyspark.__version__, case.spark.version))
    if here == there:
        return Outcome("ok", found)
    return Outcome(
        "warning",
        f"{found}, and pyspark {pyspark.__version__} here",
        "install the pyspark of the cluster's version",
    )


def _check_settings(case: _Case) -> Outcome:
    names = {
        *(GPUS_PER_TASK, GPUS_PER_EXECUTOR, CORES_PER_TASK, "spark.executor.cores"),
        *("spark.python.worker.reuse", "spark.python.worker.idleTimeoutSeconds"),
        "spark.sql.execution.arrow.maxRecordsPerBatch",
    }
    read = {name: case.spark.conf.get(name, None) for name in names}
    settings = {name: value for name, value in read.items() if value is not None}
    # In local mode such tasks would wait for ever: no job before this.
    refuse_gpu_tasks_in_local_mode(_master(case.spark), settings.get(GPUS_PER_TASK))
    owns_whole_gpus(settings.get(GPUS_PER_TASK))
    found = f"{settings.get(CORES_PER_TASK, '1')} core(s) and "
    found += f"{settings.get(GPUS_PER_TASK, 'no')} GPU(s) for each task"
    return _judge(found, settings_problems(settings))


def settings_problems(settings: Mapping[str, str]) -> list[Outcome]:
    """Returns what in Spark's settings makes a run slow or leaves accelerators idle.

    Args:
        settings: values by name, as far as they are set.
    """
    problems = []
    if settings.get("spark.python.worker.reuse") == "false":
        problems.append(
            Outcome(
                "warning",
                "spark.python.worker.reuse=false: the model is loaded again for each task",
                "set it to true",
            )
        )
    idle = settings.get("spark.python.worker.idleTimeoutSeconds", "0").rstrip("s")
    if idle != "0":
        problems.append(
            Outcome(
                "warning",
                f"spark.python.worker.idleTimeoutSeconds={idle}: a Python worker is killed while "
                "it waits for rows",
                "leave it at 0",
            )
        )
    if int(settings.get("spark.sql.execution.arrow.maxRecordsPerBatch", "2048")) <= 0:
        problems.append(
            Outcome(
                "warning",
                "spark.sql.execution.arrow.maxRecordsPerBatch has no limit: a worker holds a whole "
                "partition",
                "set it to 2048",
            )
        )
    return problems + _gpu_settings_problems(settings)


def _gpu_settings_problems(settings: Mapping[str, str]) -> list[Outcome]:
    per_executor = float(settings.get(GPUS_PER_EXECUTOR, "0"))
    per_task = float(settings.get(GPUS_PER_TASK, "0"))
    if per_executor and not per_task:
        return [
            Outcome(
                "warning",
                f"{GPUS_PER_EXECUTOR}={per_executor:g} and no {GPUS_PER_TASK}: executors have GPUs "
                "that Spark gives to no task",
                f"set {GPUS_PER_TASK}=1",
            )
        ]
    problems = []
    if per_task > 1:
        problems.append(
            Outcome(
                "warning",
                f"{GPUS_PER_TASK}={per_task:g}: each task loads one model, on one of its GPUs",
                f"set {GPUS_PER_TASK}=1",
            )
        )
    cores = int(settings.get("spark.executor.cores", "0"))
    cores_per_task = int(settings.get(CORES_PER_TASK, "1"))
    if per_task and cores and cores // cores_per_task < per_executor // per_task:
        problems.append(
            Outcome(
                "warning",
                f"{cores} cores of an executor at {cores_per_task} for each task do not keep its "
                f"{per_executor:g} GPUs busy",
                f"lower {CORES_PER_TASK} or raise spark.executor.cores",
            )
        )
    return problems


def _check_executors(case: _Case) -> Outcome:
    spark = case.spark
    if why_slots_are_unknown(spark) is None:
        case.slots = count_slots(spark.sparkContext)
    report = _node_reporter((*PACKAGES, *EXTRAS), STUCK_BUILD_S)
    case.nodes = [_decode(text) for text in _ask_executors(spark, _tasks(case), report)]
    hosts = sorted({node.host for node in case.nodes})
    slots = "unknown" if case.slots is None else str(case.slots)
    found = f"{slots} task slots on {', '.join(hosts[:8])}; Python and packages as on the driver"
    return _judge(found, node_problems(_decode(report()), case.nodes))


def node_problems(driver: NodeReport, nodes: Iterable[NodeReport]) -> list[Outcome]:
    """Returns where executors have another Python or other packages than the driver."""
    problems = []
    for node in {node.host: node for node in nodes}.values():
        here, there = (report.python.rsplit(".", 1)[0] for report in (driver, node))
        if here != there:
            what = f"{node.host}: Python {node.python}, the driver has {driver.python}"
            problems.append(Outcome("error", what, "set PYSPARK_PYTHON to the same Python"))
        for name, version in driver.packages.items():
            theirs = node.packages.get(name)
            if theirs == version or "?" in (theirs, version):
                continue
            status: Status = "error" if theirs is None and name in PACKAGES else "warning"
            what = f"{node.host}: {name} {theirs or 'not installed'}, the driver has {version}"
            advice = "install the same versions on every node"
            problems.append(Outcome(status, what, advice))
    return [*problems, *_lock_problems(nodes)]


def _lock_problems(nodes: Iterable[NodeReport]) -> list[Outcome]:
    locks = {f"{node.host}: {lock}" for node in nodes for lock in node.stuck_locks}
    return [
        Outcome(
            "warning",
            f"{lock} is left of a build that was killed; the next one waits for it for ever",
            "remove that file",
        )
        for lock in sorted(locks)
    ]


def _check_gpus(case: _Case) -> Outcome:
    device = case.config.device
    is_assigned = owns_whole_gpus(case.spark.conf.get(GPUS_PER_TASK, None))
    # Asked without a driver on the host, too, if a GPU has to be there.
    asked = "cuda" if device == "cuda" or is_assigned else "auto"
    hosts = probe_hosts(case.spark, _tasks(case), asked)
    if device != "cpu" and not is_assigned:
        choose_kind(hosts, device, case.config.num_workers, slots_known=case.slots is not None)
    gpus = sum(report.gpus for report in hosts.values())
    found = f"{gpus or 'no'} GPU(s) on {len(hosts)} host(s)"
    return _judge(found, gpu_problems(hosts, device, is_assigned=is_assigned))


def gpu_problems(
    hosts: Mapping[str, HostReport], device: str, *, is_assigned: bool
) -> list[Outcome]:
    """Returns which GPUs cannot be used, and which would be idle.

    Args:
        hosts: what torch sees on each host.
        device: what was asked for.
        is_assigned: Spark gives each task a GPU.
    """
    problems = []
    for host, report in sorted(hosts.items()):
        if is_assigned and device != "cpu" and not report.gpus:
            what = f"{host}: Spark gives tasks GPUs there, and torch sees none"
            advice = "install a CUDA build of torch and a working driver, or use --device cpu"
            problems.append(Outcome("error", what, advice))
        elif report.has_driver and not report.gpus:
            what = f"{host}: there is an NVIDIA driver, and torch sees no GPU"
            advice = "install a CUDA build of torch, or use --device cpu to leave the GPU alone"
            if device != "cpu":
                problems.append(Outcome("warning", what, advice))
        elif report.gpus and device == "cpu":
            what = f"{host}: {report.gpus} GPU(s) are there and device='cpu' leaves them idle"
            problems.append(Outcome("warning", what, "use --device auto"))
        elif report.gpus > report.tasks:
            what = f"{host}: {report.gpus} GPUs, and only {report.tasks} task(s) at once"
            advice = f"set {GPUS_PER_EXECUTOR} and {GPUS_PER_TASK}=1, and cores for as many tasks"
            problems.append(Outcome("warning", what, advice))
    return problems


def _node_reporter(names: Sequence[str], stuck_build_s: float) -> Callable[[], str]:
    """Returns a function that returns a `NodeReport` as JSON.

    It travels to executors as code and needs nothing but Python there: that sparkinfer is absent
    is one of the things it has to tell.
    """

    def report() -> str:
        import importlib.util
        import json
        import os
        import platform
        import shutil
        import socket
        import tempfile
        import time
        from importlib import metadata
        from pathlib import Path

        def version(name: str) -> str | None:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                return "?" if importlib.util.find_spec(name) else None

        folders = {tempfile.gettempdir(), *os.environ.get("SPARK_LOCAL_DIRS", "").split(",")}
        known = os.environ.get("TORCH_EXTENSIONS_DIR")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        builds = Path(known) if known else cache / "torch_extensions"
        latest = time.time() - stuck_build_s
        locks = [*builds.glob("deepspeed_*/lock"), *builds.glob("*/deepspeed_*/lock")]
        return json.dumps(
            {
                "host": socket.gethostname(),
                "python": platform.python_version(),
                "packages": {name: version(name) for name in names},
                "free_bytes": {
                    folder: shutil.disk_usage(folder).free
                    for folder in folders
                    if folder and Path(folder).is_dir()
                },
                "stuck_locks": [str(lock) for lock in locks if lock.stat().st_mtime < latest],
            }
        )

    return report


def _decode(report: str) -> NodeReport:
    return NodeReport(**json.loads(report))


def _ask_executors(spark: SparkSession, tasks: int, question: Callable[[], str]) -> list[str]:
    """Returns the answers of as many tasks as run at once; nothing of ours is imported there."""

    def answer(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for _ in batches:
            yield pa.RecordBatch.from_arrays([pa.array([question()])], names=["answer"])

    rows = spark.range(0, tasks, 1, tasks).mapInArrow(answer, "answer string").collect()
    return [row["answer"] for row in rows]


def _tasks(case: _Case) -> int:
    return case.slots or case.config.num_workers or 1


def _master(spark: SparkSession) -> str | None:
    return spark.conf.get("spark.master", None)


# The run itself, as far as it goes without scoring a row.


def _check_engine(case: _Case) -> Outcome:
    from sparkinfer.engines.launchers import choose_launcher
    from sparkinfer.engines.local import LocalEngine
    from sparkinfer.engines.readers import choose_reader

    name, options = case.config.engine, case.config.horovod
    if name == "local":
        case.engine = LocalEngine(case.config)
        return Outcome("ok", "local: one process without Spark")
    case.engine = spark_engine(case.config, case.spark)
    if name != "horovod":
        return Outcome("ok", name)
    reader = choose_reader(options.reader, str(case.config.output))
    return Outcome("ok", f"{name}, launcher {choose_launcher(options.launcher)}, reader {reader}")


def _check_workers(case: _Case) -> Outcome:
    workers = case.engine.find_workers()
    found = f"{workers.count} x {workers.kind}"
    if case.slots is None or workers.count <= case.slots:
        return Outcome("ok", found)
    return Outcome(
        "warning",
        f"{found}, and {case.slots} tasks at once: the others run afterwards",
        f"use --num-workers {case.slots} or add executors",
    )


def _check_input(case: _Case) -> Outcome:
    config = case.config
    if config.input is None:
        return Outcome("skipped", "no input was given", "give --input to have it checked")
    case.table = case.engine.open_input()
    columns = ", ".join(case.table.columns)
    found = f"{case.table.kind} {config.input} with {columns}; text in {config.input_col!r}"
    if "input_col" in case.given:
        return Outcome("ok", found)
    return Outcome("warning", f"{found}, which was not given", "name it with --input-col")


def _check_output(case: _Case) -> Outcome:
    output = case.config.output
    if output is None:
        return Outcome("skipped", "no output was given", "give --output to have it checked")
    folder = Output(output)
    folder.check(case.config.overwrite)
    if case.table is not None and case.table.path is not None:
        folder.refuse_overlap(case.table.path)
    nearest = _nearest_folder(output)
    blind = _try_to_write(case, nearest)
    if not blind:
        return Outcome("ok", f"{output} can be written (tried in {nearest})")
    return Outcome(
        "error",
        f"{nearest} of the driver is not that of executors on {', '.join(sorted(blind)[:8])}",
        "name a folder on storage that every node sees",
    )


def _try_to_write(case: _Case, folder: str) -> set[str]:
    """Returns the hosts that do not see a file which is written there for a moment.

    Raises:
        OutputError: it cannot be written.
    """
    probe = join(folder, f".sparkinfer-probe-{uuid.uuid4().hex}")
    try:
        write_text(probe, "")
        is_shared = not case.nodes or not renames_atomically(probe)
        return set() if is_shared else hosts_without(case.spark, _tasks(case), probe)
    except OSError as error:
        raise OutputError(
            f"output {case.config.output!r}: no file can be written in {folder!r} "
            f"({error.strerror or error}); name another folder or mend its permissions"
        ) from None
    finally:
        remove(probe)


def hosts_without(spark: SparkSession, tasks: int, path: str) -> set[str]:
    """Returns the hosts of executors on which there is no such file on a mounted file system."""
    name = file_system(path)[1]

    def missing_on() -> str:
        import socket
        from pathlib import Path

        return "" if Path(name).exists() else socket.gethostname()

    return {host for host in _ask_executors(spark, tasks, missing_on) if host}


def _nearest_folder(path: str) -> str:
    """Returns the path, or the nearest folder above it that exists."""
    if renames_atomically(path):
        name = Path(file_system(path)[1])
        return str(next(folder for folder in (name, *name.parents) if folder.is_dir()))
    folder = path.rstrip("/")
    while "/" in folder.split("://", 1)[-1] and not exists(folder):
        folder = folder.rsplit("/", 1)[0]
    return folder


def _check_disk(case: _Case) -> Outcome:
    host = socket.gethostname()
    used = [tempfile.gettempdir(), str(cache_folder(case.config.loading))]
    if case.config.output is not None and renames_atomically(case.config.output):
        used.append(case.config.output)
    folders = {_nearest_folder(path) for path in used}
    usage = {f"{folder} on {host}": shutil.disk_usage(folder) for folder in folders}
    free = {place: size.free for place, size in usage.items() if size.total}  # /proc has none
    for node in case.nodes:
        free |= {f"{folder} on {node.host}": size for folder, size in node.free_bytes.items()}
    return judge_disk(free)


def judge_disk(free_bytes: Mapping[str, int]) -> Outcome:
    """Returns whether there is room in each of the places."""
    shown = {place: f"{size / 2**30:.1f} GiB free in {place}" for place, size in free_bytes.items()}
    low = [shown[place] for place, size in free_bytes.items() if size < LOW_DISK_BYTES]
    if low:
        return Outcome("warning", ", ".join(low), "make room there for the model and Spark's files")
    return Outcome("ok", shown[min(free_bytes, key=lambda place: free_bytes[place])] + " at least")


def _check_model(case: _Case) -> Outcome:
    config = case.config
    get_task(config.task)
    case.source = resolve(config.model, revision=config.revision, loading=config.loading)
    stand_in = "" if "model" in case.given else " (none was given: the one of the demo)"
    name = f"{case.source.kind} {config.model}{stand_in}"
    return Outcome("ok", f"{name}, fingerprint {case.source.fingerprint[:12]}")


def _check_gate(case: _Case) -> Outcome:
    verdict = case.engine.run_gate(case.source)
    found = (
        f"{verdict.accepted} on {verdict.device}: differs from float32 by "
        f"{verdict.max_difference:.2g}, allowed {verdict.tolerance:g}; labels "
        f"{', '.join(verdict.labels[:8])}; texts are cut at {verdict.max_length} tokens"
    )
    if not verdict.rejected:
        return Outcome("ok", found)
    rejected = "; ".join(f"{name}: {reason}" for name, reason in verdict.rejected)
    advice = "rows are scored as said first; --acceleration and --dtype spare the attempts"
    return Outcome("warning", f"{found}; not used: {rejected}", advice)


_DEBUG = "run again with --debug to see where it comes from"

CHECKS = (
    Check("python", _check_python, _DEBUG),
    Check("packages", _check_packages, _DEBUG),
    Check("deepspeed", _check_deepspeed, _DEBUG),
    Check("horovod", _check_horovod, _DEBUG),
    Check("petastorm", _check_petastorm, _DEBUG),
    Check("mlflow", _check_mlflow, _DEBUG),
    Check("java", _check_java, "install pyspark and a Java that it supports", on_spark=True),
    Check("spark", _check_spark, "check --master and spark_conf", ("java",), on_spark=True),
    Check("settings", _check_settings, "correct the setting", ("spark",), on_spark=True),
    Check(
        "executors",
        _check_executors,
        "let every node have the driver's Python (PYSPARK_PYTHON) and the same packages",
        ("settings",),
        on_spark=True,
    ),
    Check("gpus", _check_gpus, _DEBUG, ("executors",), on_spark=True),
    Check("engine", _check_engine, _DEBUG, ("spark",)),
    Check("workers", _check_workers, _DEBUG, ("gpus", "engine")),
    Check("input", _check_input, "give a table with that column", ("engine",)),
    Check("output", _check_output, "name another folder"),
    Check("disk", _check_disk, _DEBUG),
    Check("model", _check_model, "give a hub id, a folder or a URI of a model"),
    Check("gate", _check_gate, "give a model that was trained for the task", ("workers", "model")),
)
"""All checks, in order; those that need Spark come after those that do not."""
