"""The sample and the model bundled with the package, and a job that shows both."""

from __future__ import annotations

from importlib import resources

from sparkinfer.config import ScoringConfig

DEFAULT_OUTPUT = "demo-output"
"""The demo's own folder, which each run of it replaces."""


def demo_config(
    output: str = DEFAULT_OUTPUT, *, engine: str = "pandas_udf", overwrite: bool = False
) -> ScoringConfig:
    """Returns the configuration of the demo: the bundled sample, scored with the bundled model."""
    folder = resources.files("sparkinfer.demo")
    return ScoringConfig(
        model=str(folder / "model"),
        input=str(folder / "reviews.parquet"),
        input_col="text",
        label_col="label",
        output=output,
        overwrite=overwrite or output == DEFAULT_OUTPUT,
        engine=engine,
        master=None if engine == "local" else "local[2]",
    )
