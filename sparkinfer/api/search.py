"""`search`: the rows of a vector store that are nearest to a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.file_input import FileInput
from sparkinfer.engines.local import here
from sparkinfer.engines.this_process import ThisProcess, slot_of
from sparkinfer.exceptions import ConfigError, InputError, OutputError
from sparkinfer.messages import shown
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.sentence_files import read_sentence_files
from sparkinfer.models.sources import stage
from sparkinfer.models.tasks.embedding import Embedding
from sparkinfer.plan.prelude import Prelude
from sparkinfer.sinks.vectors import open_store
from sparkinfer.sinks.vectors.base import (
    About,
    Neighbour,
    StoreAwayError,
    VectorStore,
    space_of,
    unreachable,
)
from sparkinfer.sinks.vectors.uri import StoreUri, parse_store

TEXT = "text"
"""Column of the text that is looked for."""

QUERY = "query"
"""Name of the prompt that is put before it where the model's files have one."""


def search(
    store: str, text: str, k: int = 10, *, model: str | None = None, **options: Any
) -> list[Neighbour]:
    """Returns the rows of a vector store that are nearest to a text, the nearest first.

    The text is embedded in this process by the model that made the store's vectors, with the prompt
    `query` of its files unless another is given.

    Args:
        store: as `vectors.store` of the run that filled it.
        text: to look for.
        k: the most rows to return.
        model: as in that run.
        **options: further options of `ScoringConfig` on the model.

    Raises:
        ConfigError: the options contradict one another.
        OutputError: the store cannot be reached, holds no vectors of a run, or those of another
            model.
        InputError: the text has no vector.
    """
    return search_as(ScoringConfig(**_query_options({**options, "model": model})), store, text, k)


def _query_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": "embedding", **options, "input_col": TEXT, "engine": "local"}


def search_as(config: ScoringConfig, store: str, text: str, k: int) -> list[Neighbour]:
    """Does the same with options that are a configuration; see `search`."""
    if k < 1:
        raise ConfigError(f"k={k}: expected a number of rows from 1")
    uri = parse_store(store)
    opened = open_store(uri)
    with closing(opened):
        about = _about(uri, opened)
        vector, space = _embedded(config, text, about)
        _refuse_other_model(uri, about, space)
        try:
            return opened.nearest(about, vector, k)
        except StoreAwayError as error:
            raise unreachable(uri, error) from error


def _about(uri: StoreUri, store: VectorStore) -> About:
    try:
        about = store.look()
    except StoreAwayError as error:
        raise unreachable(uri, error) from error
    if about is None:
        raise OutputError(
            f"{uri}: there is no such collection or table; name one that a run has filled"
        )
    return about


def _embedded(
    config: ScoringConfig, text: str, about: About
) -> tuple[npt.NDArray[np.float32], Mapping[str, Any]]:
    """Returns a text's vector, float32 (dimension,), and the settings of what made it."""
    engine = here(config)
    try:
        prelude = _prelude(config, engine)
        _refuse_other_files(about, prelude)
        processor = prelude.processor
        scoring = processor.open(slot_of(prelude.workers), lambda statistics: None)
        rows = pa.RecordBatch.from_arrays([pa.array([text], pa.string())], [TEXT])
        scored = pa.Table.from_batches(scoring.process([rows]))
    finally:
        engine.close()
    [error], [vector] = scored["error"].to_pylist(), scored["embedding"].to_pylist()
    if error is not None:
        raise InputError(f"the text {shown(text)} has no vector ({error}); give another text")
    return np.array(vector, np.float32), space_of(processor.settings())


def _prelude(config: ScoringConfig, engine: ThisProcess) -> Prelude:
    """Returns the steps before a text is embedded, with the prompt for what is looked for."""
    prelude = Prelude(config, FileInput(config), engine)
    prelude.check()
    asked = prelude.resolved
    if not isinstance(asked, ModelScoring) or not isinstance(asked.task, Embedding):
        raise ConfigError(
            f"task={config.task.name!r}: the task makes no vectors; give --task embedding"
        )
    options = asked.task.options
    if options.prompt is not None or options.prompt_name is not None:
        return prelude
    said = read_sentence_files(stage(asked.found, config.loading))
    if said is None or not said.prompts.get(QUERY):
        return prelude
    task = {"name": config.task.name, **config.task.options, "prompt_name": QUERY}
    return Prelude(config.replace(task=task), FileInput(config), engine)


def _refuse_other_files(about: About, prelude: Prelude) -> None:
    """Raises OutputError before a model is loaded that is another."""
    name = "model_fingerprint"
    _refuse(about, {name: about.space.get(name)}, {name: prelude.resolved.settings().get(name)})


def _refuse_other_model(uri: StoreUri, about: About, space: Mapping[str, Any]) -> None:
    _refuse(about, about.space, space)
    if space["task.resolved.dimension"] != about.dimension:
        raise OutputError(f"{uri} holds vectors of {about.dimension} numbers; give its own model")


def _refuse(about: About, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing: Sequence[str] = [name for name in before if before[name] != now.get(name)]
    if differing:
        lines = [f"{name} was {before[name]!r}, is {now.get(name)!r}" for name in differing]
        raise OutputError(
            f"the store's vectors were made otherwise, by the run on output {about.output!r}: "
            f"{'; '.join(lines)}. Give the model and the options of that run"
        )
