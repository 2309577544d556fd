"""Runs the blocks of some pages that need Spark, in a session on this machine."""

from __future__ import annotations

import sys
from typing import Any

from sparkinfer.cli import main
from sparkinfer.spark.java import ensure_java
from tests.docs_blocks import PYTHON, ROOT, arguments_in, blocks_of, lines_of
from tests.standalone_cluster import SHORT_LIVED_JVM


def run_pages(pages: list[str]) -> None:
    """Runs the blocks of each page in order and prints which one has run."""
    ensure_java()
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.extraJavaOptions", SHORT_LIVED_JVM)
        .getOrCreate()
    )
    for page in pages:
        names: dict[str, Any] = {"__name__": "__main__", "spark": spark}
        names["df"] = spark.read.parquet("reviews.parquet")
        evaluated = [names["df"]]
        for block in blocks_of(ROOT / page):
            if (block.kind, block.value) == ("run", "spark"):
                if block.language in PYTHON:
                    exec(compile(block.text, str(block), "exec"), names)
                    evaluate(names, evaluated)
                else:
                    for line in lines_of(block.text):
                        arguments = arguments_in(line)
                        assert arguments is None or main(arguments) == 0, f"{block}: {line}"
                print(f"ran {block}", flush=True)
    spark.stop()


def evaluate(names: dict[str, Any], evaluated: list[Any]) -> None:
    """Evaluates the DataFrames that a block has made, each once."""
    for made in list(names.values()):
        if hasattr(made, "mapInArrow") and not any(made is one for one in evaluated):
            evaluated.append(made)
            made.collect()


if __name__ == "__main__":
    run_pages(sys.argv[1:])
