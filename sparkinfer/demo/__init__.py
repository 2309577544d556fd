"""The sample and the model that the package carries, and the job that shows both."""

from __future__ import annotations

from importlib import resources

from sparkinfer.config import ScoringConfig


def demo_config(output: str, engine: str = "pandas_udf") -> ScoringConfig:
    """Returns the configuration of the demo: the carried sample, scored with the carried model."""
    folder = resources.files("sparkinfer.demo")
    return ScoringConfig(
        model=str(folder / "model"),
        input=str(folder / "reviews.parquet"),
        input_col="text",
        label_col="label",
        output=output,
        overwrite=True,
        engine=engine,
        master="local[2]" if engine == "pandas_udf" else None,
    )
