"""Ranks on two machines, which two network namespaces of this machine stand for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from sparkinfer.engines.horovod.launchers import has_horovod
from tests.standalone_cluster import Host, StandaloneCluster, run_driver
from tests.tiny_models import sentences

pytestmark = [pytest.mark.spark, pytest.mark.slow]

DRIVER = "10.231.77.1"
WORKERS = ("10.231.77.2", "10.231.77.3")
# One name for the interface of each machine: Horovod takes interfaces that all have by name.
INTERFACE = "sinf0"
LAUNCHER = "horovod" if has_horovod() else "torch"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Two namespaces and a bridge to which they and this machine are connected."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command `ip`")
    names = [f"sparkinfer{number}" for number in range(len(WORKERS))]
    try:
        ip("link", "add", INTERFACE, "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no bridge can be made here: {error.stderr.decode().strip()}")
    try:
        ip("addr", "add", f"{DRIVER}/24", "dev", INTERFACE)
        ip("link", "set", INTERFACE, "up")
        for name, address in zip(names, WORKERS, strict=True):
            connect(name, address)
        yield [Host(*pair) for pair in zip(WORKERS, names, strict=True)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        ip("link", "del", INTERFACE)


def connect(name: str, address: str) -> None:
    """Makes a namespace with an address on the bridge."""
    ip("netns", "add", name)
    ip("link", "add", f"{name}v", "type", "veth", "peer", "name", INTERFACE, "netns", name)
    ip("link", "set", f"{name}v", "master", INTERFACE, "up")
    inside = ("netns", "exec", name, "ip")
    ip(*inside, "addr", "add", f"{address}/24", "dev", INTERFACE)
    ip(*inside, "link", "set", INTERFACE, "up")
    ip(*inside, "link", "set", "lo", "up")


def score(spark: object, options: dict) -> list:
    """Scores and returns at which addresses the tasks of this session run."""
    import sparkinfer

    def look(_: object) -> object:
        import subprocess

        yield subprocess.run(
            ["hostname", "-I"], capture_output=True, text=True, check=True
        ).stdout.strip()

    addresses = spark.sparkContext.range(2, numSlices=2).barrier().mapPartitions(look).collect()
    sparkinfer.run(sparkinfer.ScoringConfig(**options), spark)
    return addresses


def test_ranks_on_two_hosts_share_the_rows(
    hosts: list[Host], classifier: Path, tmp_path: Path
) -> None:
    texts = sentences(500)
    pq.write_table(pa.table({"id": range(500), "text": texts}), tmp_path / "in.parquet")
    options: dict[str, Any] = {
        "model": str(classifier),
        "input": str(tmp_path / "in.parquet"),
        "input_col": "text",
        "output": str(tmp_path / "out"),
        "engine": "horovod",
        "dtype": "float32",
        "acceleration": "none",
        "horovod": {"launcher": LAUNCHER},
        "batching": {"max_batch_tokens": 128},
    }
    (tmp_path / "cluster").mkdir()
    with StandaloneCluster(tmp_path / "cluster", hosts=hosts, address=DRIVER) as cluster:
        addresses = run_driver(cluster, score, {"options": options}, timeout_s=180)
    assert sorted(addresses) == list(WORKERS)
    of_ranks = [pq.read_metadata(file).num_rows for file in (tmp_path / "out").glob("*.parquet")]
    assert len(of_ranks) == 2
    assert min(of_ranks) > 0
    found = pads.dataset(tmp_path / "out", format="parquet").to_table().sort_by("id")
    assert found["text"].to_pylist() == texts
