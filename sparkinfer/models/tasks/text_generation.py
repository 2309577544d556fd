"""Continues prompts, or answers messages in a model's chat template.

Greedily in float32, the new tokens are those of `model.generate` for the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

import numpy as np

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.encoded import Encoded
from sparkinfer.models.generation.chat import ChatTemplate, dated, template_of, writes_the_day
from sparkinfer.models.generation.settings import Settings, settings_of
from sparkinfer.models.tasks.base import ModelFiles, ModelTask, Task
from sparkinfer.models.tasks.generating import GeneratingModel, GeneratingTask
from sparkinfer.models.text_sources import Messages
from sparkinfer.models.tokens import Encoder
from sparkinfer.validation import Options, read_by


def _switch(value: Any) -> Any:
    """Returns `on` and `off` as they were written; YAML reads them as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _day(value: Any) -> Any:
    """Returns a day as text; YAML may read it as a day."""
    with suppress(ValueError):
        return date.fromisoformat(str(value)).isoformat()
    raise ValueError("a day such as 2026-01-31")


@dataclass(frozen=True, init=False)
class TextGenerationOptions(Options):
    """How texts become prompts."""

    chat_template: Literal["auto", "on", "off"] = field(default="auto", metadata=read_by(_switch))
    """Whether a text is put into the model's chat template as what a user says; auto: if it has
    one. A list of messages always is."""
    system_prompt: str | None = None
    """What is said before every conversation that does not begin with a message of the system."""
    template_date: str | None = field(default=None, metadata=read_by(_day))
    """The day that the chat template writes into prompts, such as 2026-01-31, if it does so."""


class TextGeneration(GeneratingTask):
    """Text from models with a decoder alone."""

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"
    heads = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    options_class = TextGenerationOptions

    @property
    def takes_messages(self) -> bool:
        """Whether a text may be a list of messages; see `Task`."""
        return bool(self.options.chat_template != "off")

    def check(self) -> None:
        """Raises ConfigError for options that contradict one another; see `Task`."""
        super().check()
        if self.options.system_prompt is not None and self.options.chat_template == "off":
            raise ConfigError(
                "task.system_prompt with task.chat_template=off: the system speaks in the chat "
                "template; drop one of them"
            )

    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task with the model's settings and template; see `Task`."""
        if files.config.is_encoder_decoder:
            raise ModelLoadError(
                f"model {str(files.path)!r} is an encoder-decoder, expected one that continues its "
                "prompt; give task=text2text-generation"
            )
        template = self._template(files)
        return _ModelTask(self, files, settings_of(files, self.generation, {}), template)

    def _template(self, files: ModelFiles) -> ChatTemplate | None:
        wanted, system = self.options.chat_template, self.options.system_prompt
        text = template_of(files.tokenizer)
        if text is not None and wanted != "off":
            template = ChatTemplate(files.tokenizer, self._dated(text), system)
            if system is not None:
                _refuse_system(template)
            return template
        if wanted == "on" or system is not None:
            option = "chat_template=on" if wanted == "on" else f"system_prompt={system!r}"
            raise ConfigError(
                f"task.{option}: the model's tokenizer has no chat template; drop the option, or "
                "give a model that was trained on conversations"
            )
        return None

    def _dated(self, template: str) -> str:
        """Returns the template with the day that was given, if it writes one.

        Left to itself, it would write the day on which a row is scored, and a run that goes on
        tomorrow would have two kinds of prompts.
        """
        day = self.options.template_date
        if writes_the_day(template):
            if day is not None:
                return dated(template, date.fromisoformat(day))
            raise ConfigError(
                "the model's chat template writes the day into prompts: say which, so that all "
                f"rows have the same, with --set task.template_date={date.today().isoformat()}"
            )
        if day is not None:
            raise ConfigError(
                f"task.template_date={day}: the model's chat template writes no day into prompts; "
                "drop the option"
            )
        return template


class _ModelTask(GeneratingModel):
    padding_side = "left"  # new tokens follow the last one of the prompt

    def __init__(
        self, task: Task, files: ModelFiles, settings: Settings, template: ChatTemplate | None
    ) -> None:
        super().__init__(task, files, settings)
        self.appended_tokens = settings.max_new_tokens
        self._template = template
        self.added_bytes = 0 if template is None else _added_bytes(template)
        # What is cut off a prompt is what is farthest from the text that follows it, as in
        # transformers' pipeline (`handle_long_generation`).
        files.tokenizer.truncation_side = "left"

    def prompt(self, text: str) -> str:
        if self._template is not None:
            return self._template.prompt(text)
        if isinstance(text, Messages):
            raise ValueError(
                "chat template: the model's tokenizer has none, and this is a list of messages"
            )
        return text

    def tokens(self, encoder: Encoder, prompts: Sequence[str]) -> Encoded:
        # The template has written the special tokens already.
        bare = encoder if self._template is None else encoder.without_special_tokens()
        return super().tokens(bare, prompts)

    def cut(self, encoder: Encoder, texts: Sequence[str], prompts: list[str]) -> Encoded:
        if self._template is None:
            return super().cut(encoder, texts, prompts)
        wide = encoder.cutting_at(encoder.max_length + 1)
        encoded = self.tokens(wide, prompts)
        long = np.flatnonzero(encoded.n_tokens > encoder.max_length)
        if not len(long):
            return encoded
        fitting = list(prompts)
        for row in long:
            fitting[row] = self._fitting(self._template, wide, texts[row])
        encoded = self.tokens(wide, fitting)
        encoded.truncated[long] = True
        return encoded

    def _fitting(self, template: ChatTemplate, wide: Encoder, text: str) -> str:
        """Returns a prompt of fewer tokens than a limit, its last message cut at the end.

        If that is not enough, the prompt is still too long.
        """
        fits, too_many = 0, len(template.last(text))
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            shorter = template.prompt(template.with_last(text, middle))
            if self.tokens(wide, [shorter]).n_tokens[0] < wide.max_length:
                fits = middle
            else:
                too_many = middle
        return template.prompt(template.with_last(text, fits))


def _refuse_system(template: ChatTemplate) -> None:
    """Raises ConfigError if a template does not take what the system is to say."""
    try:
        template.prompt("text")
    except ValueError as error:
        raise ConfigError(
            f"task.system_prompt={template.system!r}: the model's template does not take it "
            f"({error}); drop the option, or say it in the text with input_template"
        ) from None


def _added_bytes(template: ChatTemplate) -> int:
    """Returns the bytes that a template adds to a text; 0 for one that takes messages alone."""
    try:
        return len(template.prompt("text").encode())
    except ValueError:
        return 0
