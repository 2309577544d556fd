"""kill -9 of what runs, at random moments; the long form is `make chaos`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkinfer.spark.java import ensure_java
from tests.chaos.kills import LOCAL, RANKS, Chaos, Setup, marking, on_cluster
from tests.chaos.victims import DRIVER, EXECUTOR, RANK, WORKER
from tests.standalone_cluster import StandaloneCluster

ON_LOCAL = [WORKER] * 3 + [DRIVER]
ON_CLUSTER = [WORKER] * 5 + [EXECUTOR] * 2 + [DRIVER]
IN_RANKS = [WORKER] + [RANK] * 2 + [DRIVER]


@pytest.fixture(scope="module")
def mark() -> Iterator[str]:
    """What the processes of this module have in their environment; none outlives it."""
    ensure_java()
    with marking() as mark:
        yield mark


@pytest.fixture(scope="module")
def chaos(classifier: Path, mark: str, tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    """The job, with what an undisturbed run makes of it."""
    return Chaos(classifier, tmp_path_factory.mktemp("chaos"), mark)


def check(chaos: Chaos, setup: Setup, kinds: list[str], seed: int) -> None:
    """Kills processes of these kinds in some order; `Chaos` compares the outputs."""
    draw = random.Random(seed)
    launches = chaos.run(setup, draw.sample(kinds, len(kinds)), draw)
    killed = [kill.kind for launch in launches for kill in launch.kills]
    assert sorted(killed) == sorted(kinds)


@pytest.mark.spark
def test_rows_are_there_once_after_kills_of_workers_and_the_driver(chaos: Chaos) -> None:
    check(chaos, LOCAL, ON_LOCAL, seed=1)


@pytest.mark.spark
@pytest.mark.slow
def test_rows_are_there_once_after_kills_on_a_cluster(
    chaos: Chaos, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with StandaloneCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        check(chaos, on_cluster(cluster), ON_CLUSTER, seed=2)


@pytest.mark.spark
@pytest.mark.slow
def test_rows_are_there_once_after_kills_of_ranks(chaos: Chaos) -> None:
    check(chaos, RANKS, IN_RANKS, seed=3)
