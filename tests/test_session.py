from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.spark import jvm
from sparkinfer.spark.java import ensure_java
from sparkinfer.spark.session import _refuse_second_master
from tests.standalone_cluster import CHECKOUT, DRIVER_CONF, LOOPBACK, StandaloneCluster

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

LOOK = """
import json, sys
from pathlib import Path
from sparkinfer.config import ScoringConfig
from sparkinfer.spark.session import start_session

secret = sys.stdin.read().encode()
config = ScoringConfig.load(sys.argv[1])
spark = start_session(config)
spark.range(4).repartition(2).count()
conf = spark.sparkContext.getConf()
system = spark._jvm.java.lang.System
driver = f"@127.0.0.1:{conf.get('spark.driver.port')}".encode()
lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline")]
found = {
    "settings": dict(conf.getAll()),
    "executors": [line.decode() for line in lines if driver in line],
    "jvm": [system.getProperty(name) for name in ("of.user", "sparkinfer.log.file")],
    "told": [line.decode() for line in lines if secret in line],
    "repr": repr(config),
}
print(json.dumps(found))
"""


def test_settings_reach_jvm_and_executors_by_no_command_line_and_the_clusters_count(
    standalone_cluster: StandaloneCluster, tmp_path: Path
) -> None:
    secret = f"a b='{uuid.uuid4().hex}\\é"
    given = DRIVER_CONF | {
        "spark.driver.host": LOOPBACK,
        "spark.master": standalone_cluster.url,
        "spark.hadoop.fs.s3a.secret.key": secret,
        "spark.network.crypto.saslFallback": "true",
        "spark.of.both": "ours",
        "spark.driver.extraJavaOptions": "-Dof.user=kept -XX:+UseSerialGC",
    }
    conf_dir = tmp_path / "conf"
    conf_dir.mkdir()
    (conf_dir / "spark-defaults.conf").write_text(
        f"spark.of.both theirs\nspark.of.cluster theirs\nspark.hadoop.cluster.secret {secret[5:37]}"
    )
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": "m", "input_col": "t", "spark_conf": given}))
    ensure_java()
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(config)],
        env=os.environ
        | {"SPARK_CONF_DIR": str(conf_dir), "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)},
        input=secret[5:37],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    settings = found["settings"]
    assert settings["spark.hadoop.fs.s3a.secret.key"] == secret
    assert (settings["spark.of.both"], settings["spark.of.cluster"]) == ("ours", "theirs")
    assert len(found["executors"]) == 2
    assert found["told"] == []
    # What Spark itself gives executors so, as docs/secrets.md says.
    assert all("-Dspark.network.crypto.saslFallback=true" in line for line in found["executors"])
    assert found["jvm"][0] == "kept"
    assert "sparkinfer-spark-" in found["jvm"][1]
    assert "spark.hadoop.fs.s3a.secret.key" in found["repr"]
    assert secret[5:37] not in found["repr"]
    assert not list(tmp_path.glob("sparkinfer-*.conf"))


def test_another_master_than_that_of_spark_submit_is_refused(spark: SparkSession) -> None:
    _refuse_second_master(None)
    _refuse_second_master("local[2]")
    with pytest.raises(ConfigError, match=r"spark-submit runs this on 'local\[2\]'; leave"):
        _refuse_second_master("local[3]")


def test_the_end_of_a_submitted_application_is_told_in_place_of_what_fails_then(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with jvm.death_reported():
            raise ValueError("a call of py4j")

    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    with pytest.raises(ValueError, match="py4j"):  # its context runs
        fail()
    monkeypatch.setattr(spark.sparkContext, "_jsc", None)
    with pytest.raises(JobError, match="has ended this application; run the same command"):
        fail()
