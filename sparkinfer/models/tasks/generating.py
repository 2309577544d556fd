"""What the tasks that generate text have in common: prompts in, generated texts out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.encoded import Encoded, Inputs
from sparkinfer.models.generation import library, loop
from sparkinfer.models.generation.draws import keys_of
from sparkinfer.models.generation.made import Made, StopTexts
from sparkinfer.models.generation.settings import Settings, check_options
from sparkinfer.models.generation.steps import can_step, steps_of
from sparkinfer.models.tasks.base import (
    ModelFiles,
    ModelTask,
    Runtime,
    Task,
    Tensors,
    float_lists,
    without_rows,
)
from sparkinfer.models.tokens import NO_LIMIT, Encoder
from sparkinfer.option_groups import GenerationConfig


@dataclass(frozen=True)
class GeneratingTask(Task):
    """A task that generates text.

    Attributes:
        generation: how.
        asked_as: name by which it was asked for.
    """

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    asked_as: str = ""

    # No pipeline of every transformers generates text of both kinds of model; this one holds any.
    pipeline: ClassVar[str] = "feature-extraction"

    @classmethod
    def of_options(cls, options: Any, generation: GenerationConfig, name: str) -> Task:
        """Returns the task with its options; see `Task`."""
        return cls(options, generation, name)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The new text alone, the tokens made for it, its end included, and why it ended."""
        return (
            pa.field("generated_text", pa.string()),
            pa.field("n_generated_tokens", pa.int32()),
            pa.field("finish_reason", pa.string()),
        )

    def check(self) -> None:
        """Raises ConfigError for options that contradict one another; see `Task`."""
        check_options(self.generation)

    def settings(self) -> dict[str, Any]:
        """Returns the options that determine the output; see `Task`."""
        values = asdict(self.generation)
        shown = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        return {**super().settings(), **{f"generation.{key}": v for key, v in shown.items()}}


class GeneratingModel(ModelTask):
    """A task that generates text, as one model does it.

    Args:
        task: the task.
        files: the model's.
        settings: how the model generates.

    Attributes:
        settings: as given.
    """

    def __init__(self, task: Task, files: ModelFiles, settings: Settings) -> None:
        super().__init__(task)
        self.settings = settings
        self._tokenizer = files.tokenizer
        self._stops = StopTexts(files.tokenizer, settings.stop)
        self.made_tokens = settings.max_new_tokens
        self._has_generated = False

    @abstractmethod
    def prompt(self, text: str) -> str:
        """Returns the prompt of a text.

        Raises:
            ValueError: there is none, and why.
        """

    def tokens(self, encoder: Encoder, prompts: Sequence[str]) -> Encoded:
        """Returns the token ids of prompts, cut where they are too long."""
        encoded = encoder.encode(prompts)
        ids = encoded.columns["input_ids"]  # of other inputs, generating models make nothing
        return replace(encoded, columns={"input_ids": ids, "attention_mask": np.ones_like(ids)})

    def cut(self, encoder: Encoder, texts: Sequence[str], prompts: list[str]) -> Encoded:
        """Returns the token ids of prompts, of which those that are too long are cut."""
        return self.tokens(encoder, prompts)

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the token ids of prompts.

        One that is too long is cut if a length limit was asked for, and else has an error: without
        a part of it, the model would answer something else.
        """
        texts = columns[0]
        prompts, errors = self._prompts(texts)
        if encoder.cut_is_asked:
            encoded = self.cut(encoder, texts, prompts)
        else:
            encoded = self.tokens(encoder.cutting_at(encoder.max_length + 1), prompts)
        for row in np.flatnonzero(encoded.n_tokens > encoder.max_length).tolist():
            errors.setdefault(row, self._too_long(encoder))
        return Inputs.of_one_sequence_each(encoded.refusing(errors) if errors else encoded)

    def encode_probes(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the texts on which the model is tried as inputs; see `ModelTask`."""
        prompts, errors = self._prompts(columns[0])
        return Inputs.of_one_sequence_each(self.tokens(encoder, prompts).refusing(errors))

    def _prompts(self, texts: Sequence[str]) -> tuple[list[str], dict[int, str]]:
        """Returns the prompt of each text, and why there is none by index."""
        prompts, errors = [], {}
        for row, text in enumerate(texts):
            prompt = ""
            try:
                prompt = self.prompt(text)
            except ValueError as error:
                errors[row] = str(error)
            prompts.append(prompt)
        return prompts, errors

    def _too_long(self, encoder: Encoder) -> str:
        most, made = encoder.max_length, self.settings.max_new_tokens
        if encoder.cut_is_asked:
            return f"prompt: its part that is never cut takes more than max_length={most} tokens"
        room = f", as it generates up to {made}" if self.appended_tokens else ""
        return (
            f"prompt: more than the {most} tokens that the model takes{room}; shorten it, or give "
            "max_length to have it cut"
        )

    def longest_input(self, limit: int) -> int:
        """Returns the tokens of the longest prompt; see `ModelTask`."""
        room = limit - self.appended_tokens
        if room < 1:
            raise ConfigError(
                f"generation.max_new_tokens={self.settings.max_new_tokens}: this model takes "
                f"{limit} tokens, those of the prompt included, which leaves none for a prompt; "
                "lower it"
            )
        return limit if limit == NO_LIMIT else room

    def run(self, runtime: Runtime, tensors: Tensors) -> Made:
        """Returns what the model generates; see `ModelTask`."""
        settings, module = self.settings, _module_of(runtime)
        ids, mask = _placed(module, tensors)
        keys = keys_of(_unpadded(tensors))
        if settings.by_library or not can_step(module):
            return library.generate(module, ids, mask, keys, settings, self._tokenizer)
        steps = steps_of(module, ids, mask, settings.start)
        return loop.generate(steps, keys, settings, self._stops)

    def decode(self, output: Made, tensors: Tensors) -> pa.RecordBatch:
        """Returns a row for each prompt; see `ModelTask`."""
        texts = [self._stops.text(tokens) for tokens in output.tokens]
        counts = [len(tokens) for tokens in output.tokens]
        columns = [
            pa.array(texts, pa.string()),
            pa.array(counts, pa.int32()),
            pa.array(output.reasons, pa.string()),
        ]
        decoded = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        return without_rows(decoded, np.array([why is None for why in output.reasons], np.bool_))

    def try_out(self, runtime: Runtime, tensors: Tensors) -> pa.RecordBatch:
        """Returns what the model says of the token that comes next; see `ModelTask`.

        Which is the probability of each, and the logits, which tell models apart where all are
        improbable. They come of a step with a cache, as most tokens do. What the library refuses to
        generate by shows the first time.
        """
        module = _module_of(runtime)
        ids, mask = _placed(module, tensors)
        if self.settings.by_library and not self._has_generated:
            keys = keys_of(_unpadded(tensors))[:1]
            library.generate(module, ids[:1], mask[:1], keys, self.settings.brief, self._tokenizer)
            self._has_generated = True
        return self.compared(self._next_logits(module, ids, mask))

    def compared(self, logits: Any) -> pa.RecordBatch:
        """Returns what `try_out` does for the logits of the next token.

        Args:
            logits: float32 (rows, vocabulary); those that differ by one number are the same.
        """
        logits = logits.masked_fill(logits == float("-inf"), -1e4).clamp(min=-1e4)
        centred = logits - logits.mean(dim=-1, keepdim=True)
        scaled = centred / centred.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6)
        found = [logits.softmax(dim=-1), scaled]
        columns = [float_lists(one.cpu().numpy()) for one in found]
        tried = pa.RecordBatch.from_arrays(columns, names=["probabilities", "logits"])
        finite = logits.isfinite().all(dim=-1).cpu().numpy()
        return without_rows(tried, ~finite)

    def _next_logits(self, module: Any, ids: Any, mask: Any) -> Any:
        start = self.settings.start
        prompt, shown, token = ids, mask, None
        if start is not None:
            token = ids.new_full((len(ids),), start)
        elif int(mask.sum(-1).min()) > 1:
            prompt, shown, token = ids[:, :-1], mask[:, :-1], ids[:, -1]
        if not can_step(module):
            return library.next_logits(module, prompt, shown, token)
        steps = steps_of(module, prompt, shown, start)
        logits = steps.first()
        return logits if token is None else steps.next(token)


def _module_of(runtime: Runtime) -> Any:
    """Returns the model itself, of whatever a backend has put around it."""
    from transformers import PreTrainedModel

    module = runtime.module
    while not isinstance(module, PreTrainedModel):
        if not hasattr(module, "module"):
            raise TypeError(
                f"generation needs a model of transformers, not {type(module).__name__}"
            )
        module = module.module
    return module


def _placed(module: Any, tensors: Tensors) -> tuple[Any, Any]:
    """Returns the prompts' tokens and which of them are no padding, on the model's device."""
    device = next(module.parameters()).device
    return tensors["input_ids"].to(device), tensors["attention_mask"].to(device)


def _unpadded(tensors: Tensors) -> list[npt.NDArray[np.int64]]:
    pairs = zip(tensors["input_ids"].numpy(), tensors["attention_mask"].numpy(), strict=True)
    return [ids[mask > 0] for ids, mask in pairs]
