"""An input of files, read by Arrow in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import InputError
from sparkinfer.plan.inputs import input_format
from sparkinfer.plan.ports import InputTable
from sparkinfer.rows.copying import FileCopier
from sparkinfer.storage import file_system


class FileInput:
    """Parquet, CSV or JSON lines at the configured path; see `InputSource`.

    Args:
        config: names the path.
    """

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config

    def open(self) -> InputTable:
        """Returns what the files hold."""
        path = str(self._config.input)
        kind = input_format(self._config)
        if kind == "table":
            raise InputError(
                f"input {path!r} is a table, which only Spark can read; use --engine pandas_udf"
            )
        try:
            schema = self._dataset(kind, path).schema
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"input {path!r} cannot be read as {kind}: {error}") from None
        return InputTable(tuple(schema.names), kind, path, schema.remove_metadata())

    def copy(self, folder: str, rows_per_file: int, paths: Sequence[str]) -> None:
        """Copies files of the input to a folder of Parquet files; see `InputSource`."""
        fs, name = file_system(folder)
        pads.write_dataset(
            self._dataset(input_format(self._config), list(paths)),
            name,
            filesystem=fs,
            format="parquet",
            max_rows_per_file=rows_per_file,
            max_rows_per_group=rows_per_file,
        )

    def copy_files(self, copier: FileCopier, names: Sequence[str]) -> dict[str, list[str]]:
        """Copies Parquet files, one after the other; see `InputSource`."""
        return {name: copier.copy(name) for name in names}

    def _dataset(self, kind: str, source: str | list[str]) -> pads.Dataset:
        """Returns a dataset of a file, a folder or a list of files of the input."""
        path = str(self._config.input)
        fs, root = file_system(path)
        names = [file_system(name)[1] for name in source] if isinstance(source, list) else root
        form = _csv_format(fs, names) if kind == "csv" else kind
        # As in Spark, a folder's `key=value` parts are columns and a single file's are not.
        if fs.isfile(root):
            return pads.dataset(names, filesystem=fs, format=form)
        return pads.dataset(
            names, filesystem=fs, format=form, partitioning="hive", partition_base_dir=root
        )


def _csv_format(fs: Any, name: str | list[str]) -> pads.CsvFileFormat:
    """Returns the format that reads CSV as Spark does with our options: all columns as strings."""
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    header = pads.dataset(name, filesystem=fs, format=pads.CsvFileFormat(parse)).schema.names
    return pads.CsvFileFormat(
        parse_options=parse,
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        ),
    )
