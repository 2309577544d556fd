"""Options of a run that are valid alone but not together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown
from sparkinfer.model_section import MODEL_NAME, ModelSection
from sparkinfer.option_groups import DeltaConfig, MlflowConfig, TableConfig, VectorsConfig

if TYPE_CHECKING:
    from sparkinfer.config import ScoringConfig


def refuse_mlflow_without_experiment(config: ScoringConfig) -> None:
    """Raises ConfigError for what is said of a run in MLflow if there is to be none."""
    if config.mlflow.experiment is None and config.mlflow != MlflowConfig():
        raise ConfigError(
            "mlflow.tracking_uri, run_name or tags without mlflow.experiment: nothing goes to "
            "MLflow without one; give --mlflow EXPERIMENT or mlflow.experiment"
        )


def refuse_names(config: ScoringConfig) -> None:
    """Raises ConfigError unless each of several models has a name, and only there."""
    if config.model is not None:
        raise ConfigError(
            f"model={shown(config.model)} with models {', '.join(map(shown, config.models))}: give "
            "each of several models a name, as --model NAME=PATH or in `models`, or only one model"
        )
    for name, section in config.models.items():
        if not MODEL_NAME.fullmatch(name):
            raise ConfigError(
                f"models: the name {shown(name)} of a model: expected letters, digits, - and _; "
                "give it as --model NAME=PATH, and a path with = in it as ./PATH"
            )
        if section.model is None:
            raise ConfigError(
                f"option 'models.{name}.model' is required; give --model {name}=PATH, or it in the "
                "section"
            )


def refuse_one_prefix(by_model: Mapping[str, ScoringConfig]) -> None:
    """Raises ConfigError if the columns of two models would have the same names."""
    of_prefix: dict[str, str] = {}
    for name, config in by_model.items():
        prefix = config.output_prefix.lower()  # Spark's names are case-insensitive
        if prefix in of_prefix:
            raise ConfigError(
                f"models.{of_prefix[prefix]} and models.{name} have one output_prefix, "
                f"{config.output_prefix!r}: their columns would have the same names; give each its "
                "own, or none to have NAME_"
            )
        of_prefix[prefix] = name


def refuse_contradictions_of_model(config: ScoringConfig) -> None:
    """Raises ConfigError for options of one model that are valid alone but not together."""
    if config.model is None:
        raise ConfigError(
            "option 'model' is required; give --model or model=..., or a function as --fn or fn=..."
        )
    _refuse_texts(config)
    if config.acceleration == "none" and config.deepspeed.kernel_inject:
        raise ConfigError(
            "deepspeed.kernel_inject=true with acceleration='none': kernels need DeepSpeed; "
            "use acceleration='deepspeed' or drop the option"
        )
    if config.device == "cpu" and config.dtype == "float16":
        raise ConfigError(
            "dtype='float16' with device='cpu': CPUs compute float16 slowly or not at all; use "
            "dtype='bfloat16' or 'float32'"
        )
    if config.device == "cuda" and config.dtype == "int8":
        raise ConfigError(
            "dtype='int8' with device='cuda': models are run in int8 on CPUs; use dtype='float16' "
            "or device='cpu'"
        )
    if config.metrics and config.label_col is None:
        raise ConfigError(
            f"metrics={list(config.metrics)} without label_col: metrics compare with true labels; "
            "name the column that holds them"
        )
    if config.label_col is not None and config.label_col == config.input_col:
        raise ConfigError(
            f"label_col={config.label_col!r} is also the input column; name the column that holds "
            "the true labels"
        )
    kept = config.carry_cols
    if config.label_col and kept is not None and config.label_col not in kept:
        raise ConfigError(
            f"label_col={config.label_col!r} is not in carry_cols={list(kept)}: metrics are "
            "computed from the output; add it there"
        )


def refuse_contradictions(config: ScoringConfig) -> None:
    """Raises ConfigError for options of a run that are valid alone but not together."""
    if config.engine == "local":
        _refuse_spark_options(config)
    if config.incremental and config.overwrite:
        raise ConfigError(
            "incremental=true with overwrite=true: one keeps what is there and the other replaces "
            "it; drop one of them"
        )
    if config.incremental_col is not None and not config.incremental:
        raise ConfigError(
            f"incremental_col={config.incremental_col!r} without incremental=true: the column "
            "serves to find new rows; give both or neither"
        )
    if config.retry_errors and config.overwrite:
        raise ConfigError(
            "retry_errors=true with overwrite=true: one repairs what is there and the other "
            "replaces it; drop one of them"
        )
    _refuse_table(config)
    if config.input_version is not None and config.incremental:
        raise ConfigError(
            f"input_version={config.input_version} with incremental=true: a version has no new "
            "rows; drop one of them"
        )
    kept = config.carry_cols
    if kept is not None and (not kept or len(set(kept)) < len(kept)):
        raise ConfigError(
            f"carry_cols={list(kept)}: expected at least one column, each named once; leave it out "
            "to keep all"
        )


def _refuse_table(config: ScoringConfig) -> None:
    """Raises ConfigError for a table that the output cannot be written to."""
    shown_name = f"table.name={shown(config.table.name)}"
    if config.table.name is None:
        return
    if config.retry_errors and config.table.mode == "append":
        raise ConfigError(
            f"retry_errors=true with {shown_name}: an append cannot replace the rows that were "
            "appended with their errors; give --set table.mode=replace, or drop one of them"
        )
    if not config.vectors.parquet:
        raise ConfigError(
            f"vectors.parquet=false with {shown_name}: the table is written from the output's "
            "files; drop one of them"
        )


def refuse_vectors(config: ScoringConfig) -> None:
    """Raises ConfigError for options of a vector store that do not fit the others."""
    vectors = config.vectors
    if vectors.store is None:
        if vectors.given - {"store"}:
            raise ConfigError(
                f"vectors.{min(vectors.given)} without vectors.store: name the store with "
                "--vector-store, or drop the option"
            )
        return
    if config.retry_errors and not vectors.parquet:
        raise ConfigError(
            "retry_errors=true with vectors.parquet=false: rows are tried again from the output's "
            "files; drop one of them"
        )
    if vectors.model is not None and vectors.model not in config.models:
        raise ConfigError(
            f"vectors.model={shown(vectors.model)}: expected one of "
            f"{', '.join(map(shown, config.models)) or 'several models, and there is one'}"
        )


def _refuse_texts(config: ScoringConfig) -> None:
    """Raises ConfigError unless it is clear where the texts come from."""
    if config.input_col is None and config.input_template is None:
        raise ConfigError(
            "option 'input_col' is required; give --input-col COLUMN, or --input-template with the "
            "names of columns in braces"
        )
    if config.input_col is not None and config.input_template is not None:
        raise ConfigError(
            f"input_col={config.input_col!r} with input_template={config.input_template!r}: either "
            "is the text; give one of them"
        )
    if config.template.null is not None and config.input_template is None:
        raise ConfigError(
            f"template.null={config.template.null!r} without input_template: it replaces nulls "
            "in the template's columns; give both or neither"
        )
    if config.preprocess.function is None and config.preprocess.given:
        raise ConfigError(
            f"preprocess.{min(config.preprocess.given)} without preprocess.function: name the "
            "function as package.module:function, or drop the option"
        )


MODEL_DEFAULTS = {n: v for n, v in ModelSection().as_dict().items() if n != "output_prefix"}
"""Options that say something of a model, which a function has no use for."""


def refuse_beside_function(config: ScoringConfig) -> None:
    """Raises ConfigError for options that have no meaning for a function."""
    if not config.fn.function:
        raise ConfigError(
            f"fn.{min(config.fn.given)} without fn.function: name the function, as --fn "
            "package.module:name"
        )
    elsewhere = {"vectors": VectorsConfig(), "delta": DeltaConfig(), "table": TableConfig()}
    refused = {**MODEL_DEFAULTS, **elsewhere, "models": {}, "carry_cols": None}
    beside = [name for name, default in refused.items() if getattr(config, name) != default]
    if beside:
        raise ConfigError(
            f"{beside[0]} with fn={shown(config.fn.function[0])}: a function is given the rows as "
            "they are, and what it returns is the output; leave the option out, or use fn.args, "
            "fn.input_cols and the function itself"
        )
    if config.dedupe:
        raise ConfigError(
            f"dedupe=true with fn={shown(config.fn.function[0])}: a function may return other "
            "rows for equal ones; leave the option out"
        )
    given = config.fn.given & {"args", "kwargs", "constructor_args", "constructor_kwargs"}
    if given and len(config.fn.function) > 1:
        raise ConfigError(
            f"fn.{min(given)} with {len(config.fn.function)} functions: it is not clear which of "
            "them takes them; give functools.partial objects or classes without arguments"
        )


def _refuse_spark_options(config: ScoringConfig) -> None:
    given = {
        f"master={config.master!r}": config.master is not None,
        f"spark_conf with {shown(list(config.spark_conf))}": bool(config.spark_conf),
    }
    for what, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"{what} with engine='local': that engine works without Spark; drop the "
                "option or use engine='pandas_udf'"
            )
    if config.input_format in ("table", "query"):
        raise ConfigError(
            f"input_format={config.input_format!r} with engine='local': tables are read by Spark; "
            "give a path or use engine='pandas_udf'"
        )
