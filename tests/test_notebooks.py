"""The notebooks, run from the first cell to the last on what the package carries.

All of them share one kernel and its Spark session, each with an empty namespace: most of the time
is the start of a JVM and the import of torch. Databricks is not here: its `dbutils` is a fake.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

nbformat = pytest.importorskip("nbformat", reason="the package nbformat is not installed")
pytest.importorskip("nbclient", reason="the package nbclient is not installed")

from jupyter_client.manager import KernelManager  # noqa: E402
from nbclient import NotebookClient  # noqa: E402
from nbclient.exceptions import CellExecutionError  # noqa: E402

from sparkinfer.demo import demo_config  # noqa: E402
from sparkinfer.spark.java import ensure_java  # noqa: E402
from tests.standalone_cluster import SHORT_LIVED_JVM  # noqa: E402

CHECKOUT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {path.stem[2:]: path for path in sorted((CHECKOUT / "notebooks").iterdir())}
CELL_TIMEOUT_S = 300
FAKE_DBUTILS = """
class Widgets(dict):
    def text(self, name, default):
        self.setdefault(name, default)

    get = dict.__getitem__

class dbutils:
    widgets = Widgets({chosen!r})
"""


class Kernel:
    """A Jupyter kernel that notebooks are run in, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manager = KernelManager(kernel_name="python3")

    def start(self) -> None:
        """Starts it, with a Spark of two slots for whatever asks for one."""
        ensure_java()
        conf = f'--master local[2] --driver-java-options "{SHORT_LIVED_JVM}" pyspark-shell'
        env = {**os.environ, "PYSPARK_SUBMIT_ARGS": conf, "MLFLOW_TRACKING_URI": self.mlflow}
        env["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
        env.pop("PYSPARK_PYTHON", None)
        self._manager.start_kernel(cwd=str(self.folder), env=env)

    @property
    def mlflow(self) -> str:
        """Where its MLflow writes to."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def stop(self) -> None:
        """Ends it and its JVM."""
        self._manager.shutdown_kernel()
        self._manager.context.term()

    def run(self, *sources: str, names: str = "") -> list[Any]:
        """Runs cells in an empty namespace and returns them with their outputs.

        Args:
            *sources: the code of the cells.
            names: code that makes names that are there before.
        """
        cells = [nbformat.v4.new_code_cell(one) for one in ("%reset -f", names, *sources)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        client = NotebookClient(notebook, km=self._manager, timeout=CELL_TIMEOUT_S)
        try:
            client.execute()
        finally:
            client.kc.stop_channels()  # it leaves them to whoever made the kernel
        return list(notebook.cells[2:])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path_factory.mktemp("notebooks"))
    kernel.start()
    yield kernel
    kernel.stop()


def code_of(name: str) -> list[str]:
    notebook = nbformat.read(NOTEBOOKS[name], 4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cells: list[Any]) -> str:
    """Returns what the cells printed and returned as text."""
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for cell in cells
        for output in cell.outputs
    )


def bars_of(cells: list[Any]) -> list[str]:
    """Returns the progress that is shown below the cells."""
    shown = [output.get("data", {}) for cell in cells for output in cell.outputs]
    return [one["text/html"] for one in shown if "<progress" in one.get("text/html", "")]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_in_git_has_no_outputs(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS[name], nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_one_cell_of_parameters_and_it_comes_first(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS[name], 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in cells if cell.metadata.get("tags") == ["parameters"]] == cells[:1]
    assert "dbutils" not in "".join(cell.source for cell in cells[1:])
    asked = set(re.findall(r"^    \"(\w+)\":", cells[0].source, re.MULTILINE))
    used = set(re.findall(r"parameters\[['\"](\w+)['\"]\]", "".join(c.source for c in cells[1:])))
    assert used == asked


def test_widgets_of_databricks_take_the_place_of_the_parameters(kernel: Kernel) -> None:
    chosen = {"model": "models:/main.reviews.sentiment/1", "folder": "/Volumes/main/reviews/out"}
    parameters = code_of("several_models")[0]
    [_, shown] = kernel.run(parameters, "parameters", names=FAKE_DBUTILS.format(chosen=chosen))
    assert "'models:/main.reviews.sentiment/1'" in text_of([shown])
    assert "'input_col': 'text'" in text_of([shown])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_empty_folder_is_refused_and_not_taken_for_the_root(kernel: Kernel, name: str) -> None:
    with pytest.raises(CellExecutionError, match="folder='': expected where results go"):
        kernel.run(code_of(name)[0], names=FAKE_DBUTILS.format(chosen={"folder": ""}))


@pytest.mark.spark
def test_data_and_model_are_prepared(kernel: Kernel) -> None:
    cells = kernel.run(*code_of("data_and_model"))
    text = text_of(cells)
    assert "2,000 rows, 10 of them without a text" in text
    assert re.search(r"checks: \d+ ok", text)
    assert "error" not in text
    assert "model: sparkinfer-notebooks/model" in text


@pytest.mark.spark
def test_the_model_is_registered_where_there_is_a_name_for_it(kernel: Kernel) -> None:
    """In a registry of MLflow's own: Unity Catalog's takes the same call, by the documentation."""
    chosen = {"table": "reviews", "registered_model": "main.reviews.sentiment"}
    cells = code_of("data_and_model")
    until = next(number for number, cell in enumerate(cells) if "examine(" in cell)
    [*_, prepared] = kernel.run(*cells[:until], cells[-1], names=FAKE_DBUTILS.format(chosen=chosen))
    assert text_of([prepared]).split("\n")[:2] == [
        "model: models:/main.reviews.sentiment/1",
        "input: reviews",
    ]


@pytest.mark.spark
def test_what_is_in_the_folder_of_data_and_model_is_left_as_it_is(
    kernel: Kernel, tmp_path: Path
) -> None:
    for name in ("reviews", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("of the user")
    cells = code_of("data_and_model")
    until = next(number for number, cell in enumerate(cells) if "examine(" in cell)
    kernel.run(*cells[:until], names=FAKE_DBUTILS.format(chosen={"folder": str(tmp_path)}))
    for name in ("reviews", "model"):
        assert (tmp_path / name / "config.json").read_text() == "of the user"
        assert not list((tmp_path / name).glob("*.safetensors"))


@pytest.mark.spark
def test_a_pandas_udf_scores_with_deepspeed_and_shows_its_progress(
    kernel: Kernel, tmp_path: Path
) -> None:
    """On a table whose columns have other names than those of the carried one."""
    rows = pq.read_table(demo_config().input).select(["label", "text"])
    pq.write_table(rows.rename_columns(["label", "review"]), tmp_path / "rows.parquet")
    chosen = {"input": str(tmp_path / "rows.parquet"), "input_col": "review"}
    names = FAKE_DBUTILS.format(chosen=chosen)
    cells = kernel.run(*code_of("pandas_udf_and_deepspeed"), names=names)
    assert "with DeepSpeed in" in text_of(cells)
    assert "accuracy          0.9" in text_of(cells)
    [bar] = bars_of(cells)
    assert 'value="2000" max="2000"' in bar


@pytest.mark.spark
def test_horovod_scores_what_petastorm_reads(kernel: Kernel) -> None:
    cells = kernel.run(*code_of("horovod_and_petastorm"))
    assert "Scored 2,000 rows in" in text_of(cells)
    assert "'prepare':" in text_of(cells)
    assert len(bars_of(cells)) == 1


@pytest.mark.spark
def test_the_engines_agree(kernel: Kernel) -> None:
    cells = kernel.run(*code_of("compare_engines"))
    assert text_of(cells).count("changed     0 of 1,990 rows (0.0000%)") == 2
    assert text_of(cells).count("errors      0 only in A, 0 only in B, 10 in both") == 2
    assert "state      finished" in text_of(cells)


@pytest.mark.spark
def test_vectors_are_found_in_the_store(kernel: Kernel) -> None:
    cells = kernel.run(*code_of("embeddings_and_search"))
    assert "1,990 vectors in chroma:" in text_of(cells)
    assert re.search(r"0 +0\.\d+ +\d+ ", text_of(cells[-1:]))


@pytest.mark.spark
def test_two_models_have_metrics_each(kernel: Kernel) -> None:
    text = text_of(kernel.run(*code_of("several_models")))
    assert re.search(r"accuracy +0\.9\d+ +0\.7\d+", text)
    assert " of 2,000 rows" in text


@pytest.mark.spark
def test_code_for_ray_data_and_determined_runs(kernel: Kernel) -> None:
    text = text_of(kernel.run(*code_of("your_own_code")))
    assert re.search(r"POSITIVE +\d+", text)
    assert "1,990 of 1,990 rows" in text


@pytest.mark.spark
def test_a_batch_processor_does_not_pass_off_its_output_as_that_of_other_rows(
    kernel: Kernel,
) -> None:
    [*before, predicting, processing, _] = code_of("your_own_code")
    texts = predicting[predicting.index("texts =") : predicting.index("labelled =")]
    other = 'df = df.selectExpr("id", "upper(text) text")'
    folder = FAKE_DBUTILS.format(chosen={"folder": "other-rows"})
    kernel.run(*before, texts, processing, names=folder)
    with pytest.raises(CellExecutionError, match="hparams"):
        kernel.run(*before, other, texts, processing, names=folder)


def test_a_task_of_databricks_in_a_kernel_fails_when_the_command_does(kernel: Kernel) -> None:
    """Called as the wrapper of Databricks' command line calls it, which has a kernel run it."""
    calling = """
import sys
from importlib import metadata

def run_task(*arguments):
    sys.argv = ["sparkinfer-spark", *arguments]
    points = metadata.distribution("sparkinfer-spark").entry_points
    [point for point in points if point.name == "task"][0].load()()
"""
    asked = "run_task('--version')\nprint('went on')"
    failed = "try:\n    run_task('status', 'nowhere')\nexcept Exception as error:\n    print(error)"
    went_on, ended = kernel.run(asked, failed, names=calling)
    assert "went on" in text_of([went_on])
    assert "exit code 2" in text_of([ended])
