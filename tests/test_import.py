import subprocess
import sys

import pytest

HEAVY = ("pyspark", "torch", "transformers", "horovod", "deepspeed", "mlflow")


def _loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert not _loaded_by("import sparkinfer") & set(HEAVY)


def test_building_a_configuration_loads_no_heavy_library() -> None:
    statement = "import sparkinfer; sparkinfer.ScoringConfig(model='m', input_col='text')"
    assert not _loaded_by(statement) & set(HEAVY)


def test_the_core_loads_no_spark() -> None:
    statement = "import sparkinfer.models.scorer, sparkinfer.batching.planner"
    assert "pyspark" not in _loaded_by(statement)


def test_the_local_engine_and_the_doctor_load_no_spark() -> None:
    statement = "import sparkinfer.engines.local, sparkinfer.doctor.examination, sparkinfer.cli"
    assert "pyspark" not in _loaded_by(statement)


@pytest.mark.spark
@pytest.mark.parametrize("engine", ["pandas_udf", "horovod"])
def test_the_driver_side_of_a_spark_engine_loads_no_torch(engine: str) -> None:
    loaded = _loaded_by(f"import sparkinfer.engines.{engine}")
    assert not loaded & {"torch", "transformers", "petastorm"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    script = "import sparkinfer; sparkinfer.scroe"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "module 'sparkinfer' has no attribute 'scroe'" in done.stderr
