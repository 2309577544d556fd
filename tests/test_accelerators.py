"""How many replicas fit, and which device a task owns.

No test has a GPU: Spark's GPU addresses come from discovery scripts, and `torch.cuda` is replaced
inside the tasks. Everything else on the way (master, workers, scheduling, task resources, locks)
is real.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.spark import accelerators
from sparkinfer.spark.accelerators import (
    Accelerators,
    HostReport,
    choose_kind,
    count_accelerators,
    merge_reports,
    owns_whole_gpus,
    refuse_gpu_tasks_in_local_mode,
    refuse_more_than_gpus,
    task_device,
    with_slots,
)
from sparkinfer.workers import devices, gpus, resident
from sparkinfer.workers.devices import gpu_index, worker_gpus
from tests.standalone_cluster import CHECKOUT, StandaloneCluster, run_driver

GPU_CONF = {
    "spark.executor.resource.gpu.amount": "1",
    "spark.task.resource.gpu.amount": "1",
    # Says when all executors are there, however slowly the machine starts them.
    "spark.executor.instances": "2",
}


class FakeConnectSession:
    """What `count_accelerators` uses of a Spark Connect session that has no executors to probe."""

    def __init__(self, conf: dict[str, str], error: type[Exception] = AttributeError) -> None:
        self.conf = conf
        self.error = error

    @property
    def sparkContext(self) -> None:  # noqa: N802
        raise self.error("not supported in Spark Connect")


def fake_cuda(monkeypatch, count: int) -> None:
    cuda = SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


@pytest.fixture
def assigned(monkeypatch):
    """Sets the GPU address that Spark is taken to have given the running task."""

    def assign(address: str | None) -> None:
        monkeypatch.setattr(accelerators, "assigned_gpu", lambda: address)

    return assign


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """Locks in a folder of the test, none of them held."""
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "_former", None)
    monkeypatch.setattr(gpus, "_gave_up", False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield tmp_path
    gpus.release_gpus()


def device_of_a_task(kind: str = "cuda") -> str:
    """Returns the device that a task gets, which ends at once."""
    with task_device(kind) as device:
        return device


@pytest.mark.parametrize(
    ("amount", "whole"), [(None, False), ("0", False), ("1", True), ("1.0", True), ("2", True)]
)
def test_a_task_owns_whole_gpus_or_none(amount, whole):
    assert owns_whole_gpus(amount) is whole


@pytest.mark.parametrize(("amount", "tasks"), [("0.25", 4), ("0.5", 2), ("0.3", 3)])
def test_a_part_of_a_gpu_is_refused(amount, tasks):
    expected = rf"spark\.task\.resource\.gpu\.amount={amount}: {tasks} tasks.*set it to 1"
    with pytest.raises(ConfigError, match=expected):
        owns_whole_gpus(amount)


@pytest.mark.parametrize("master", ["local", "local[2]", "local[*]", "local[2, 3]"])
def test_gpu_tasks_in_local_mode_are_refused(master):
    with pytest.raises(ConfigError, match="would wait forever"):
        refuse_gpu_tasks_in_local_mode(master, "1")


@pytest.mark.parametrize(
    ("master", "amount"),
    [("local[2]", None), ("spark://h:7077", "1"), ("local-cluster[2,1,512]", "1"), (None, "1")],
)
def test_gpu_tasks_elsewhere_are_not_refused(master, amount):
    refuse_gpu_tasks_in_local_mode(master, amount)


def test_reports_are_merged_by_host():
    reports = [("a", 2, True), ("b", 0, False), ("a", 2, True)]
    assert merge_reports(reports) == {
        "a": HostReport(tasks=2, gpus=2, has_driver=True),
        "b": HostReport(tasks=1, gpus=0, has_driver=False),
    }


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_hosts_with_a_gpu_per_slot_run_on_gpus(device):
    hosts = {"a": HostReport(2, 2, True), "b": HostReport(1, 4, True)}
    assert choose_kind(hosts, device, None, slots_known=True) == "cuda"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_slots_than_gpus_are_refused(device):
    hosts = {"a": HostReport(1, 1, True), "b": HostReport(8, 1, True)}
    with pytest.raises(
        ConfigError, match=r"host b runs 8 tasks at a time but has 1 GPU\(s\).*local\[1\]"
    ):
        choose_kind(hosts, device, 1, slots_known=True)


def test_a_split_model_takes_several_gpus_per_slot():
    hosts = {"a": HostReport(2, 4, True)}
    assert choose_kind(hosts, "auto", None, slots_known=True, gpus_each=2) == "cuda"
    with pytest.raises(ConfigError, match=r"4 GPU\(s\), 4 of which a copy takes.*local\[1\]"):
        choose_kind(hosts, "auto", None, slots_known=True, gpus_each=4)
    assert owns_whole_gpus("2", 2)
    with pytest.raises(ConfigError, match=r"amount=1 with parallel\.tensor=2: .* set it to 2"):
        owns_whole_gpus("1", 2)


@pytest.fixture
def four_gpus(monkeypatch, tmp_path):
    """Four GPUs that are not there."""
    monkeypatch.setattr(devices, "count_cuda_devices", lambda: 4)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield
    gpus.release_gpus()


def test_a_split_model_holds_a_group_of_gpus(four_gpus):
    with worker_gpus((), 2) as owned:
        assert owned == ("cuda:0", "cuda:1")


def test_a_split_model_takes_the_gpus_that_spark_names(four_gpus):
    with worker_gpus(("3", "1"), 2) as owned:
        assert owned == ("cuda:3", "cuda:1")
    with (
        pytest.raises(EngineUnavailableError, match="spark.task.resource.gpu.amount=2"),
        worker_gpus(("3",), 2),
    ):
        pass
    with (
        pytest.raises(EngineUnavailableError, match="torch sees 4 CUDA devices"),
        worker_gpus((), 8),
    ):
        pass


def test_tasks_after_each_other_are_not_taken_for_slots():
    hosts = {"a": HostReport(8, 1, True)}
    assert choose_kind(hosts, "auto", 1, slots_known=False) == "cuda"


def test_hosts_without_gpus_run_on_the_cpu(caplog):
    hosts = {"a": HostReport(2, 0, False)}
    assert choose_kind(hosts, "auto", None, slots_known=True) == "cpu"
    assert not caplog.records


def test_a_driver_without_a_cuda_device_is_told(caplog):
    hosts = {"a": HostReport(2, 0, True)}
    with caplog.at_level(logging.WARNING):
        assert choose_kind(hosts, "auto", None, slots_known=True) == "cpu"
    assert "a: there is an NVIDIA driver, but torch sees no CUDA device" in caplog.text


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error():
    hosts = {"a": HostReport(2, 0, False), "b": HostReport(2, 0, False)}
    with pytest.raises(EngineUnavailableError) as caught:
        choose_kind(hosts, "cuda", 3, slots_known=True)
    message = str(caught.value)
    assert "3 GPU(s) were requested, none was found on 2 executor host(s) (a, b)" in message
    assert "--device cpu" in message


@pytest.mark.parametrize("num_workers", [None, 2, 4])
def test_as_many_workers_as_gpus_are_taken(num_workers):
    refuse_more_than_gpus(4, num_workers)


def test_more_workers_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="num_workers=5: the executors run 4 tasks with a GPU"):
        refuse_more_than_gpus(4, 5)


def test_slots_of_hosts_that_are_known_count_more_than_the_tasks_that_told_of_gpus():
    hosts = {"a": HostReport(1, 2, True), "b": HostReport(3, 2, True)}
    found = with_slots(hosts, {"a": 4})
    assert found == {"a": HostReport(4, 2, True), "b": HostReport(3, 2, True)}
    with pytest.raises(ConfigError, match="host a runs 4 tasks at a time but has 2 GPU"):
        choose_kind(found, "auto", None, slots_known=True)


@pytest.mark.parametrize(
    ("address", "visible", "index"),
    [("0", [], 0), ("3", [], 3), ("1", ["6", "7"], 1), ("GPU-b", ["GPU-a", "GPU-b"], 1)],
)
def test_index_of_a_gpu_address(address, visible, index):
    assert gpu_index(address, visible) == index


def test_a_gpu_uuid_that_is_not_visible_is_an_error():
    with pytest.raises(
        EngineUnavailableError, match="'GPU-c' is not in CUDA_VISIBLE_DEVICES='0,1'"
    ):
        gpu_index("GPU-c", ["0", "1"])


def test_cpu_tasks_own_the_cpu():
    assert device_of_a_task("cpu") == "cpu"


def test_the_assigned_gpu_is_the_device(assigned, locks, monkeypatch):
    assigned("1")
    fake_cuda(monkeypatch, 2)
    assert device_of_a_task() == "cuda:1"


def test_an_assigned_uuid_is_looked_up_among_the_visible_devices(assigned, locks, monkeypatch):
    assigned("GPU-b")
    fake_cuda(monkeypatch, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    assert device_of_a_task() == "cuda:1"


@pytest.mark.parametrize("count", [0, 1])
def test_an_assigned_gpu_that_torch_does_not_see_is_an_error(assigned, monkeypatch, count):
    assigned("1")
    fake_cuda(monkeypatch, count)
    with pytest.raises(EngineUnavailableError, match=f"owns GPU 1, but torch sees {count} CUDA"):
        device_of_a_task()


def test_without_torch_a_gpu_is_an_error(assigned, monkeypatch):
    assigned("0")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineUnavailableError, match="sees 0 CUDA devices"):
        device_of_a_task()


def test_a_process_keeps_the_gpu_that_it_has_locked(assigned, locks, monkeypatch):
    assigned(None)
    fake_cuda(monkeypatch, 2)
    assert [device_of_a_task(), device_of_a_task()] == ["cuda:0", "cuda:0"]


def test_a_process_keeps_its_gpu_whatever_spark_says_later(assigned, locks, monkeypatch):
    fake_cuda(monkeypatch, 2)
    devices = []
    for address in ("1", "0", "1"):
        assigned(address)
        devices.append(device_of_a_task())
    assert devices == ["cuda:1"] * 3


def test_no_gpu_to_lock_is_an_error(assigned, locks, monkeypatch):
    assigned(None)
    fake_cuda(monkeypatch, 0)
    with pytest.raises(EngineUnavailableError, match="torch sees 0 CUDA devices"):
        device_of_a_task()


HOLD_A_GPU = """
import sys
from types import SimpleNamespace
from sparkinfer.spark import accelerators
from sparkinfer.workers import gpus, resident

class Model:
    pass

def load():
    print("load", flush=True)
    return Model()

folder, count = sys.argv[1:]
cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: int(count))
sys.modules["torch"] = SimpleNamespace(cuda=cuda)
gpus.tempfile.tempdir = folder
for line in sys.stdin:  # the address of a task; then anything, for its end
    address = line.strip() or None
    accelerators.assigned_gpu = lambda: address
    with accelerators.task_device("cuda") as device:
        resident.get(device, load, lambda: print("release", flush=True))
        print(device, flush=True)
        sys.stdin.readline()
    print("done", flush=True)
"""


class Worker:
    """A worker process with a stub of torch that reports some GPUs."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        command = [sys.executable, "-c", HOLD_A_GPU, str(folder), str(count)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=CHECKOUT, **pipes)

    def begin(self, address: str = "") -> None:
        """Starts a task that Spark gave an address."""
        self._say(address)

    def said(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self._say("")
        assert self.said() == "done"

    def stop(self) -> None:
        self.process.communicate(timeout=20)

    def _say(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@pytest.fixture
def start(locks) -> Iterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def start_worker() -> Worker:
        workers.append(Worker(locks))
        return workers[-1]

    yield start_worker
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


def test_processes_on_a_host_lock_different_gpus(start, assigned, monkeypatch):
    assigned(None)
    fake_cuda(monkeypatch, 2)
    monkeypatch.setattr(gpus, "PATIENCE_S", 0.0)
    first, second = start(), start()
    for worker in (first, second):
        worker.begin()
        assert worker.said() == "load"
    assert {first.said(), second.said()} == {"cuda:0", "cuda:1"}
    with pytest.raises(EngineUnavailableError, match=r"than there are GPUs \(2\)"):
        device_of_a_task()
    first.process.kill()
    first.process.wait()
    assert device_of_a_task() in ("cuda:0", "cuda:1")


def test_workers_that_spark_pairs_anew_keep_their_gpus_and_models(start):
    first, second = start(), start()
    for turn, (one, other) in enumerate([("0", "1"), ("1", "0"), ("0", "1")]):
        first.begin(one)
        if not turn:
            assert first.said() == "load"
        assert first.said() == "cuda:0"
        second.begin(other)
        if not turn:
            assert second.said() == "load"
        assert second.said() == "cuda:1"
        first.end()
        second.end()


def test_a_new_worker_takes_the_gpu_whose_holder_has_no_task(start):
    first, second, third = start(), start(), start()
    for worker, address in ((first, "0"), (second, "1")):
        worker.begin(address)
        assert [worker.said(), worker.said()] == ["load", f"cuda:{address}"]
        worker.end()
    first.begin("1")  # at work on GPU 0, in place of 1
    assert first.said() == "cuda:0"
    third.begin("0")
    assert second.said() == "release"
    assert [third.said(), third.said()] == ["load", "cuda:1"]
    third.end()
    second.begin("0")
    assert third.said() == "release"
    assert [second.said(), second.said()] == ["load", "cuda:1"]


def test_spark_is_believed_where_a_stranger_holds_what_it_assigned(
    start, assigned, monkeypatch, caplog
):
    stranger = start()
    stranger.begin("0")
    assert [stranger.said(), stranger.said()] == ["load", "cuda:0"]
    fake_cuda(monkeypatch, 2)
    monkeypatch.setattr(gpus, "PATIENCE_S", 0.1)
    assigned("0")
    assert device_of_a_task() == "cuda:0"
    assert "GPU 0 is held by another process" in caplog.text


def test_a_gpu_is_not_let_go_during_a_task(start, locks, assigned, monkeypatch):
    fake_cuda(monkeypatch, 2)
    assigned("0")
    with task_device("cuda") as device:
        assert device == "cuda:0"
        resident.get("model", lambda: "a model", lambda: None)
        other = start()
        other.begin("1")
        assert [other.said(), other.said()] == ["load", "cuda:1"]
        other.end()
        assert resident.get("model", lambda: "loaded anew", lambda: None) == "a model"
    resident.release()


def test_spark_connect_takes_num_workers():
    session = FakeConnectSession({"spark.task.cpus": "4"})
    assert count_accelerators(session, "cpu", 3) == Accelerators("cpu", 3, 4, 3)


def test_spark_connect_trusts_the_gpus_of_the_configuration():
    session = FakeConnectSession({"spark.task.resource.gpu.amount": "1"})
    assert count_accelerators(session, "auto", 3) == Accelerators("cuda", 3, 1, 3)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_part_of_a_gpu_is_refused_for_a_session(device):
    session = FakeConnectSession({"spark.task.resource.gpu.amount": "0.5"})
    with pytest.raises(ConfigError, match="0.5: 2 tasks"):
        count_accelerators(session, device, 2)


def test_a_part_of_a_gpu_does_not_matter_on_the_cpu():
    session = FakeConnectSession({"spark.task.resource.gpu.amount": "0.5"})
    assert count_accelerators(session, "cpu", 2) == Accelerators("cpu", 2, 1, 2)


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_gpu_tasks_on_a_local_session_are_refused(device):
    conf = {"spark.master": "local[2]", "spark.task.resource.gpu.amount": "1"}
    with pytest.raises(ConfigError, match="would wait forever"):
        count_accelerators(FakeConnectSession(conf), device, 2)


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_workers_that_must_run_together_need_a_number_where_executors_come_and_go(device):
    session = FakeConnectSession({"spark.dynamicAllocation.enabled": "true"})
    with pytest.raises(ConfigError, match="dynamicAllocation.*run together; give num_workers"):
        count_accelerators(session, device, together=True)
    found = count_accelerators(session, "cpu", 4, together=True)
    assert found == Accelerators("cpu", 4, 1, 4)


@pytest.mark.spark
def test_local_session_has_its_threads_as_cpu_slots(spark):
    assert count_accelerators(spark, "auto") == Accelerators("cpu", 2, 1, 2)
    assert count_accelerators(spark, "cpu") == Accelerators("cpu", 2, 1, 2)


@pytest.mark.spark
@pytest.mark.parametrize("num_workers", [1, 7])
def test_num_workers_overrides_the_cpu_slots(spark, num_workers):
    assert count_accelerators(spark, "cpu", num_workers) == Accelerators(
        "cpu", num_workers, 1, num_workers
    )


@pytest.mark.spark
def test_cuda_on_a_session_without_gpus_is_an_error(spark):
    with pytest.raises(EngineUnavailableError, match=r"2 GPU\(s\) were requested, none was found"):
        count_accelerators(spark, "cuda", 2)


def count_and_take_devices(spark, num_gpus):
    """Counts the accelerators, then lets that many tasks at once take their device.

    There is no GPU: in the tasks `torch.cuda` is a stub that reports `num_gpus` devices.
    """
    from sparkinfer.spark.accelerators import count_accelerators

    found = count_accelerators(spark, "auto")

    def take(_):
        import sys
        from types import SimpleNamespace

        from pyspark import BarrierTaskContext

        from sparkinfer.spark.accelerators import task_device

        cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: num_gpus)
        sys.modules["torch"] = SimpleNamespace(cuda=cuda)
        with task_device("cuda") as device:
            BarrierTaskContext.get().barrier()  # all tasks hold their device at this moment
            yield device

    tasks = spark.sparkContext.parallelize(range(found.count), found.count)
    devices = tasks.barrier().mapPartitions(take).collect()
    return {"kind": found.device_type, "count": found.count, "devices": sorted(devices)}


@pytest.mark.spark
def test_workers_with_a_gpu_each_hold_a_replica_each(standalone_cluster):
    found = run_driver(standalone_cluster, count_and_take_devices, {"num_gpus": 2}, GPU_CONF)
    assert found == {"kind": "cuda", "count": 2, "devices": ["cuda:0", "cuda:1"]}


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory):
    """A cluster of one worker with two GPUs, and the settings of an executor that has both."""
    conf = GPU_CONF | {
        "spark.executor.resource.gpu.amount": "2",
        "spark.executor.instances": "1",
    }
    folder = tmp_path_factory.mktemp("two-gpus")
    with StandaloneCluster(folder, num_workers=1, cores=3, gpu_addresses=[["0", "1"]]) as cluster:
        yield cluster, conf


@pytest.mark.spark
def test_one_executor_with_two_gpus_holds_two_replicas(two_gpus):
    cluster, conf = two_gpus
    found = run_driver(cluster, count_and_take_devices, {"num_gpus": 2}, conf)
    assert found == {"kind": "cuda", "count": 2, "devices": ["cuda:0", "cuda:1"]}


def load_in_many_tasks(spark, folder):
    """Runs jobs of two tasks, one after the other and at the same time; returns what tasks saw."""
    from concurrent.futures import ThreadPoolExecutor

    def take(batches):
        import os
        import sys
        import time
        from types import SimpleNamespace

        import pyarrow as pa

        from sparkinfer.spark import accelerators
        from sparkinfer.workers import gpus, resident

        cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
        sys.modules["torch"] = SimpleNamespace(cuda=cuda)
        gpus.tempfile.tempdir = folder
        for batch in batches:
            with accelerators.task_device("cuda") as device:
                model = resident.get(("model", device), time.monotonic_ns, lambda: None)
                seen = {"pid": os.getpid(), "address": accelerators.assigned_gpu()}
                seen |= {"device": device, "model": model}
            rows = {name: [value] * batch.num_rows for name, value in seen.items()}
            yield pa.RecordBatch.from_pydict(rows)

    schema = "pid long, address string, device string, model long"

    def run_job(number):
        tasks = 1 if number % 3 == 1 else 2  # so that Spark's pairs change
        return spark.range(tasks, numPartitions=tasks).mapInArrow(take, schema).collect()

    jobs = [run_job(number) for number in range(9)]
    with ThreadPoolExecutor(3) as threads:
        jobs += threads.map(run_job, range(18))
    return [row.asDict() for job in jobs for row in job]


@pytest.mark.spark
def test_workers_of_an_executor_with_two_gpus_load_once_each(two_gpus, tmp_path):
    cluster, conf = two_gpus
    seen = run_driver(cluster, load_in_many_tasks, {"folder": str(tmp_path)}, conf)
    of_workers = {(one["pid"], one["device"], one["model"]) for one in seen}
    assert len(seen) == 45
    assert sorted(device for _, device, _ in of_workers) == ["cuda:0", "cuda:1"]
    assert len({pid for pid, _, _ in of_workers}) == 2
    assert {(one["address"], one["device"]) for one in seen} > {("0", "cuda:0"), ("1", "cuda:1")}


def count(spark):
    """Returns what is counted on this session, as text."""
    from sparkinfer.spark.accelerators import count_accelerators

    return repr(count_accelerators(spark, "auto"))


@pytest.mark.spark
def test_a_cluster_without_gpus_in_its_configuration_is_probed(standalone_cluster):
    conf = {"spark.executor.instances": "2"}
    assert run_driver(standalone_cluster, count, conf=conf) == repr(Accelerators("cpu", 2, 1, 2))
