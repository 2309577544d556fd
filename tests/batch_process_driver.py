"""Calls `torch_batch_process` in a process of its own; its argument is JSON."""

from __future__ import annotations

import json
import os
import sys

import sparkinfer
from tests.made_up_processor import Numbers, Recorder


def main(rows: int, journal: str, at: dict[str, str], **options: object) -> None:
    class Here(Recorder):
        """Made in the script: pickled by value. The driver's id is no part of the settings."""

        driver = os.getpid()

        def __init__(self, context: sparkinfer.TorchBatchProcessorContext) -> None:
            super().__init__(context)
            self.hparams = {
                "journal": journal,
                "at": at,
                "driver": self.driver,
                "output": options["output"],
            }

    spark = None
    if options.get("engine", "local") != "local":
        from sparkinfer.spark.java import ensure_java

        ensure_java()
        os.environ["PYSPARK_PYTHON"] = sys.executable
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.master("local[3]").config("spark.ui.enabled", "false")
        spark = builder.getOrCreate()
        spark.sparkContext.setLogLevel("OFF")
    run = sparkinfer.torch_batch_process(
        Here, Numbers(rows), hparams={"journal": journal}, spark=spark, **options
    )
    print(json.dumps({"steps": run.steps, "finished": run.finished}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
