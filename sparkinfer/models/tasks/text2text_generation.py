"""Writes a text for a text with an encoder-decoder: summaries, translations, answers.

Greedily in float32, the tokens are those of `model.generate` for the row alone. `summarization` and
`translation` are the same under the names that a model's `task_specific_params` has for them: a
prefix of the text, and how the model generates. They are used as the pipelines of transformers 4
used them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.generation.settings import Settings, settings_of
from sparkinfer.models.tasks.base import ModelFiles, ModelTask, Task
from sparkinfer.models.tasks.generating import GeneratingModel, GeneratingTask
from sparkinfer.models.tokens import of_config
from sparkinfer.validation import Options


@dataclass(frozen=True, init=False)
class Text2TextOptions(Options):
    """What the model is asked to do with a text."""

    prefix: str | None = None
    """Put before every text, such as `"summarize: "`; None: as the model's files say."""
    src_lang: str | None = None
    """Language of the texts, as the model's files call it; for translation."""
    tgt_lang: str | None = None
    """Language to translate to."""


class Text2TextGeneration(GeneratingTask):
    """Text from encoder-decoders."""

    name = "text2text-generation"
    auto_class = "AutoModelForSeq2SeqLM"
    heads = ("ForConditionalGeneration", "WithLMHeadModel")
    options_class = Text2TextOptions

    def check(self) -> None:
        """Raises ConfigError for options that contradict one another; see `Task`."""
        super().check()
        for name in ("src_lang", "tgt_lang"):
            if getattr(self.options, name) is None:
                continue
            if self.asked_as != "translation":
                raise ConfigError(
                    f"task.{name}={getattr(self.options, name)!r} with task={self.asked_as!r}: "
                    "languages are for task=translation; drop the option"
                )
        if (self.options.src_lang is None) != (self.options.tgt_lang is None):
            raise ConfigError("task.src_lang and task.tgt_lang: give both or neither")

    def settings(self) -> dict[str, Any]:
        """Returns the options that determine the output; see `Task`."""
        return {**super().settings(), "task": self.asked_as}

    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task with what the model's files say of it; see `Task`."""
        if not files.config.is_encoder_decoder:
            raise ModelLoadError(
                f"model {str(files.path)!r} is no encoder-decoder, expected one that reads a text "
                "and writes another; give task=text-generation"
            )
        said = self._said(files)
        if self.asked_as == "translation":
            said |= _languages(files, self.options.src_lang, self.options.tgt_lang)
        settings = settings_of(files, self.generation, said)
        _refuse_too_many(files, settings)
        of_files = (said.get("prefix"), getattr(files.config, "prefix", None))
        prefixes = (self.options.prefix, *of_files)
        prefix = next((one for one in prefixes if one is not None), "")
        return _ModelTask(self, files, settings, prefix)

    def _said(self, files: ModelFiles) -> dict[str, Any]:
        """Returns what the model's files say of the task in particular.

        Raises:
            ConfigError: they say it of several pairs of languages, and none was named.
        """
        said = getattr(files.config, "task_specific_params", None) or {}
        if self.asked_as != "translation":
            return dict(said.get(self.asked_as) or {})
        pairs = [name for name in said if name.startswith("translation_")]
        wanted = f"translation_{self.options.src_lang}_to_{self.options.tgt_lang}"
        if self.options.src_lang is None and len(pairs) == 1:
            wanted = pairs[0]
        if self.options.src_lang is None and len(pairs) > 1:
            raise ConfigError(
                f"task='translation': the model translates {', '.join(sorted(pairs))}; name the "
                "languages with task.src_lang and task.tgt_lang"
            )
        if wanted in said:
            return dict(said[wanted] or {})
        if pairs and self.options.prefix is None and self.options.src_lang is not None:
            raise ConfigError(
                f"task.src_lang={self.options.src_lang!r} and tgt_lang={self.options.tgt_lang!r}: "
                f"the model's files know {', '.join(sorted(pairs))}; give one of these, or "
                "task.prefix"
            )
        if not pairs and self.options.src_lang is not None and not _builds(files.tokenizer):
            raise ConfigError(
                f"task.src_lang={self.options.src_lang!r} and tgt_lang={self.options.tgt_lang!r}: "
                "the model's files name no languages, so that it would ignore these; drop "
                "both, and give task.prefix if it wants the language in the text"
            )
        return dict(said.get("translation") or {})


def _builds(tokenizer: Any) -> Any:
    """Returns what makes the inputs of a tokenizer for several languages; None for others."""
    return getattr(tokenizer, "_build_translation_inputs", None)


def _languages(files: ModelFiles, source: str | None, target: str | None) -> dict[str, Any]:
    """Sets the tokenizer's language, and returns the settings for writing another.

    Source: `_build_translation_inputs` of transformers' tokenizers for several languages.
    """
    tokenizer = files.tokenizer
    build = _builds(tokenizer)
    if build is None:
        return {}
    if source is None or target is None:
        raise ConfigError(
            "task='translation': the model translates between many languages; name them with "
            "task.src_lang and task.tgt_lang"
        )
    try:
        made = build("", return_tensors=None, src_lang=source, tgt_lang=target)
        first = made["forced_bos_token_id"]
        named = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        others = {first, *made["input_ids"]} - (named - {tokenizer.unk_token_id})
        reason = "one of them is no language of its" if others else ""
    except Exception as error:  # tokenizers raise KeyError, ValueError, ...
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if reason:
        raise ConfigError(
            f"task.src_lang={source!r} and tgt_lang={target!r}: the tokenizer does not take them "
            f"({reason}); give the languages by the model's own names"
        )
    return {"forced_bos_token_id": first}


def _refuse_too_many(files: ModelFiles, settings: Settings) -> None:
    """Raises ConfigError for more new tokens than the decoder has positions."""
    names = ("max_decoder_position_embeddings", "max_position_embeddings")
    limits = (of_config(files.config, name) for name in names)
    limit = next((one for one in limits if isinstance(one, int) and one > 0), None)
    if limit is not None and settings.max_new_tokens > limit:
        raise ConfigError(
            f"generation.max_new_tokens={settings.max_new_tokens}: this model writes at most "
            f"{limit} tokens; lower it"
        )


class _ModelTask(GeneratingModel):
    def __init__(self, task: Task, files: ModelFiles, settings: Settings, prefix: str) -> None:
        super().__init__(task, files, settings)
        self._prefix = prefix
        self.added_bytes = len(prefix.encode())

    def prompt(self, text: str) -> str:
        return self._prefix + text
