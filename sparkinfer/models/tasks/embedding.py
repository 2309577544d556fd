"""Makes one vector of a text.

The numbers are those of `SentenceTransformer.encode` of sentence-transformers on the same folder,
whose files say how the vectors of a text's tokens become one. Of a folder without them, the token
vectors' mean is taken, as that package does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.logs import get_logger
from sparkinfer.messages import shown
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.pooling import SentenceHead, load_layers
from sparkinfer.models.sentence_files import (
    POOLING_MODES,
    SENTENCE_FILES,
    Pooling,
    SentenceFiles,
    read_sentence_files,
)
from sparkinfer.models.tasks.base import (
    ModelFiles,
    ModelTask,
    Runtime,
    Task,
    Tensors,
    float_lists,
    without_rows,
)
from sparkinfer.models.tokens import Encoder, of_config
from sparkinfer.validation import Options, at_least, read_by

logger = get_logger(__name__)

PLACE, COUNTED = "place", "counted"
"""Columns of token values: the place of each in its text, from 1, and whether it is pooled."""


def _modes(value: Any) -> Any:
    """Returns ways to pool, of which one may stand alone."""
    modes = [value] if isinstance(value, str) else value
    is_list = isinstance(modes, list | tuple) and len(modes) > 0
    if modes is None or (is_list and all(mode in [*POOLING_MODES] for mode in modes)):
        return modes
    raise ValueError(f"one or a list of {', '.join(POOLING_MODES)}")


def _text(value: Any) -> Any:
    """Returns a text, which YAML takes for a mapping if it ends with a colon and a space."""
    if isinstance(value, Mapping):
        raise ValueError("a string; put it in quotes within quotes: '\"query: \"'")
    return value


@dataclass(frozen=True, init=False)
class EmbeddingOptions(Options):
    """What a model's own files do not say, or say with a choice."""

    pooling: tuple[str, ...] | None = field(default=None, metadata=read_by(_modes))
    """How a text's token vectors become one: `cls`, `max`, `mean`, `mean_sqrt_len_tokens`,
    `weightedmean`, `lasttoken`, or several, joined; None: as the files say, else the mean."""
    normalize: bool | None = None
    """Whether each vector gets the length 1 at last; None: as the files say."""
    truncate_dim: int | None = field(default=None, metadata=at_least(1))
    """Numbers of each vector to keep, for models that were trained for it; None: as the files say,
    else all."""
    prompt: str | None = field(default=None, metadata=read_by(_text))
    """Text to put before each text, such as `"query: "`; an empty one means none; None: by
    `prompt_name`."""
    prompt_name: str | None = None
    """Name of one of the prompts of the model's files, such as `query`; None: their default."""


class Embedding(Task):
    """Embeddings by encoders, with or without the files of sentence-transformers."""

    options: EmbeddingOptions

    name = "embedding"
    pipeline = "feature-extraction"
    auto_class = "AutoModel"
    graph_output = "last_hidden_state"
    files = SENTENCE_FILES
    unused_weights = ("pooler.*",)
    options_class = EmbeddingOptions

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The vector."""
        return (pa.field("embedding", pa.list_(pa.float32())),)

    def check(self) -> None:
        """Raises ConfigError for two prompts."""
        prompt, name = self.options.prompt, self.options.prompt_name
        if prompt is not None and name is not None:
            raise ConfigError(
                f"task.prompt={prompt!r} with task.prompt_name={name!r}: either is put before each "
                "text; give one of them"
            )

    def class_of(self, model_config: Any) -> str:
        """Returns the class of the encoder alone for models that have a decoder, too.

        Source: `Transformer._load_encoder_only_model` of sentence-transformers.
        """
        from transformers.models.auto import modeling_auto

        encoders = modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
        is_half = str(encoders.get(model_config.model_type)).endswith("EncoderModel")
        return "AutoModelForTextEncoding" if is_half else self.auto_class

    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task as the model's files have it; see `Task`."""
        said = read_sentence_files(files.path)
        if said is None:
            said = SentenceFiles(Pooling(self.options.pooling or _assumed(files)))
        self._refuse_contradictions(said)
        if said.max_length is not None:
            files.tokenizer.model_max_length = said.max_length
        if said.lowers_case:
            _lower_case(files)
        prompt = self._prompt(said)
        taken = len(files.tokenizer(prompt, verbose=False)["input_ids"]) if prompt else 0
        head, numbers = self._head(said, files)
        return EmbeddingModel(self, said, head, numbers, prompt, taken)

    def _refuse_contradictions(self, said: SentenceFiles) -> None:
        options, modes = self.options, said.pooling.modes
        if options.pooling not in (None, modes):
            raise ConfigError(
                f"task.pooling={list(options.pooling or ())}: this model's files say "
                f"{list(modes)}; drop the option"
            )
        ends_normal = bool(said.layers) and said.layers[-1].kind == "Normalize"
        if options.normalize is False and ends_normal:
            raise ConfigError(
                "task.normalize=false: this model's files say that vectors get the length 1; drop "
                "the option"
            )

    def _head(self, said: SentenceFiles, files: ModelFiles) -> tuple[SentenceHead, int | None]:
        """Returns what makes a vector, and how many numbers that has; None: unknown."""
        modes, cut = said.pooling.modes, self.options.truncate_dim
        width = of_config(files.config, "hidden_size")
        pooled = None if width is None else int(width) * len(modes)
        layers, numbers = load_layers(files.path, said.layers, pooled)
        if cut is not None and numbers is not None and cut > numbers:
            raise ConfigError(
                f"task.truncate_dim={cut}: this model's vectors have {numbers} numbers; lower it "
                "or leave it out"
            )
        cut = cut or said.truncate_dim
        kept = numbers if cut is None or numbers is None else min(cut, numbers)
        return SentenceHead(modes, layers, cut, self.options.normalize is True), kept

    def _prompt(self, said: SentenceFiles) -> str:
        """Returns the text that is put before each text, which may be empty."""
        name = self.options.prompt_name or said.default_prompt
        if self.options.prompt is not None or name is None:
            return self.options.prompt or ""
        if name not in said.prompts:
            raise ConfigError(
                f"task.prompt_name={name!r}: this model's files name the prompts "
                f"{', '.join(said.prompts)}; give one of these, or the text itself as task.prompt"
            )
        return said.prompts[name]


class EmbeddingModel(ModelTask):
    """The task as one model does it.

    Attributes:
        head: makes a text's vector of those of its tokens.
        skips_prompt: whether those of the prompt do not count.
    """

    def __init__(
        self,
        task: Embedding,
        said: SentenceFiles,
        head: SentenceHead,
        numbers: int | None,
        prompt: str,
        taken: int,
    ) -> None:
        super().__init__(task)
        self.head = head
        self._prompt = prompt
        self._taken = taken  # tokens of a sequence of the prompt alone
        self.skips_prompt = bool(prompt) and not said.pooling.includes_prompt
        self._prompt_tokens: dict[int, int] = {}
        self.added_bytes = len(prompt.encode())
        self.resolved = {
            "pooling": list(said.pooling.modes),
            "layers": [layer.kind for layer in said.layers],
            "normalize": head.normalizes,
            "truncate_dim": head.truncate_dim,
            "dimension": numbers,
            "prompt": prompt,
        }

    def check_limit(self, max_length: int) -> None:
        """Raises ConfigError if the prompt leaves no room for a text; see `ModelTask`."""
        if self._taken >= max_length:
            raise ConfigError(
                f"the prompt {shown(self._prompt)} takes {self._taken} tokens of the {max_length} "
                "at which texts are truncated, which leaves none for a text; give a shorter "
                "task.prompt, or a greater max_length"
            )

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the token ids of texts; see `ModelTask`."""
        texts = [self._prompt + text for text in columns[0]] if self._prompt else columns[0]
        encoded = encoder.encode(texts)
        everything = np.arange(int(encoded.n_tokens.sum()))
        places = everything - np.repeat(encoded.starts, encoded.n_tokens) + 1
        encoded.columns[PLACE] = places.astype(np.int32)
        if self.skips_prompt:
            counted = places > self._tokens_of_prompt(encoder)
            encoded.columns[COUNTED] = counted.astype(np.int32)
        return Inputs.of_one_sequence_each(encoded)

    def _tokens_of_prompt(self, encoder: Encoder) -> int:
        """Returns the tokens of the prompt alone, without a special one at its end.

        Source: `Transformer._get_prompt_length` of sentence-transformers.
        """
        known = self._prompt_tokens
        if encoder.max_length not in known:
            ids = encoder.encode([self._prompt]).columns["input_ids"]
            ends_special = len(ids) > 0 and int(ids[-1]) in encoder.tokenizer.all_special_ids
            known[encoder.max_length] = len(ids) - ends_special
        return known[encoder.max_length]

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        """Returns the vectors of texts; see `ModelTask`."""

        def embed(outputs: Mapping[str, Any], placed: Tensors) -> Mapping[str, Any]:
            vectors = outputs["last_hidden_state"]
            return {"embedding": self.head(vectors, placed[PLACE], placed.get(COUNTED))}

        return runtime.forward(tensors, embed)["embedding"]

    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        """Returns a row for each vector; see `ModelTask`."""
        vectors = output.numpy()
        decoded = pa.RecordBatch.from_arrays([float_lists(vectors)], schema=self.schema)
        return without_rows(decoded, ~np.isfinite(vectors).all(axis=-1))

    def difference(self, expected: pa.RecordBatch, found: pa.RecordBatch) -> float:
        """Returns the largest distance of two vectors, both given the length 1, or of lengths.

        The first is the root of 2 - 2 * cosine, the second is relative.
        """
        wanted, values = expected.column("embedding"), found.column("embedding")
        if not wanted.is_null().equals(values.is_null()):
            return float("nan")
        return _distance(_matrix(wanted.drop_null()), _matrix(values.drop_null()))


def _assumed(files: ModelFiles) -> tuple[str, ...]:
    """Returns how to pool where no file says it and no option.

    Source: `SentenceTransformer._load_default_modules`; what it takes of a decoder depends on its
    version.
    """
    model = f"model {str(files.path)!r}"
    kinds = getattr(files.config, "architectures", None) or [""]
    if str(kinds[0]).endswith("ForCausalLM"):
        raise ModelLoadError(
            f"{model}: a {kinds[0]} without the files of sentence-transformers (modules.json), "
            "which would say how a text's token vectors become one; pass --set "
            "task.pooling=lasttoken, or as the model was trained"
        )
    logger.warning(
        "%s has no modules.json: the mean of a text's token vectors is taken, unless --set "
        "task.pooling=... names another way",
        model,
    )
    return ("mean",)


def _lower_case(files: ModelFiles) -> None:
    """Has the tokenizer put texts in lower case, special tokens in them apart.

    Source: `Transformer.__init__` of sentence-transformers.
    """
    from tokenizers import normalizers

    inner = getattr(files.tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise ModelLoadError(
            f"model {str(files.path)!r}: its files say do_lower_case for a tokenizer that is "
            "written in Python, expected a fast one; save the model with a tokenizer.json"
        )
    after = [] if inner.normalizer is None else [inner.normalizer]
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])


def _matrix(column: pa.ListArray) -> npt.NDArray[np.float64]:
    """Returns lists of one length, float64 (rows, length)."""
    numbers: npt.NDArray[np.float64] = column.flatten().to_numpy().astype(np.float64)
    return numbers.reshape(len(column), -1) if len(column) else numbers.reshape(0, 0)


def _distance(wanted: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float:
    smallest = float(np.finfo(np.float32).tiny)
    lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (wanted, found)]
    lengths = [np.maximum(one, smallest) for one in lengths]
    turned = np.linalg.norm(found / lengths[1] - wanted / lengths[0], axis=1)
    stretched = np.abs(lengths[1] / lengths[0] - 1.0)
    return float(max(np.max(turned, initial=0.0), np.max(stretched, initial=0.0)))
