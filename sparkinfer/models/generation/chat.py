"""Prompts for models that were trained on conversations: messages in the model's own template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.text_sources import Messages

_DAY = re.compile(r"strftime_now\s*\(\s*(?:'([^'\\]*)'|\"([^\"\\]*)\")\s*\)")
"""How a template writes the day on which it is used, in a format."""

_ASKED = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
"""How it asks whether it can, which older versions of transformers say no to."""


def template_of(tokenizer: Any) -> str | None:
    """Returns a tokenizer's template for conversations, None if it has none."""
    found = getattr(tokenizer, "chat_template", None)
    return found.get("default") if isinstance(found, Mapping) else found or None


def writes_the_day(template: str) -> bool:
    """Returns whether a template writes the day on which it is used into prompts."""
    return "strftime_now" in _ASKED.sub("", template)


def dated(template: str, day: date) -> str:
    """Returns a template that writes this day in place of the one on which it is used.

    Raises:
        ConfigError: it makes the format up as it goes.
    """
    written = _DAY.sub(lambda call: json.dumps(day.strftime(call[1] or call[2] or "")), template)
    written = _ASKED.sub(lambda asked: "false" if asked[1] else "true", written)
    if writes_the_day(written):
        raise ConfigError(
            f"task.template_date={day}: the model's chat template writes the day in a format that "
            "it computes; write a fixed one into its strftime_now(...)"
        )
    return written


@dataclass(frozen=True)
class ChatTemplate:
    """A model's template, and what is said before every conversation.

    Attributes:
        tokenizer: which renders the template.
        text: of the template.
        system: a message of the system, for conversations that do not begin with one; None: none.
    """

    tokenizer: Any
    text: str
    system: str | None

    def prompt(self, text: str) -> str:
        """Returns the prompt for an answer, special tokens included.

        Args:
            text: of a user, or `Messages`.

        Raises:
            ValueError: no conversation, or none that the template takes.
        """
        messages = _messages(text) if isinstance(text, Messages) else [_message("user", text)]
        if self.system is not None and messages[0]["role"] != "system":
            messages = [_message("system", self.system), *messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.text,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"chat template: {type(error).__name__}: {reason}") from None

    def last(self, text: str) -> str:
        """Returns what is said last in a conversation, which is the text unless it is `Messages`.

        Raises:
            ValueError: it is no conversation.
        """
        return _messages(text)[-1]["content"] if isinstance(text, Messages) else text

    def with_last(self, text: str, characters: int) -> str:
        """Returns a conversation of which the last message is cut to so many characters.

        Raises:
            ValueError: it is no conversation.
        """
        if not isinstance(text, Messages):
            return text[:characters]
        *before, last = _messages(text)
        return Messages(json.dumps([*before, {**last, "content": last["content"][:characters]}]))


def _messages(text: str) -> list[dict[str, str]]:
    """Returns the messages of a conversation."""
    found = json.loads(text)
    if not found:
        raise ValueError("the list of messages is empty")
    for number, message in enumerate(found):
        for name in ("role", "content"):
            if message is None or message[name] is None:
                raise ValueError(f"message {number} has no {name}")
    if found[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's, expected one that it can answer")
    return list(found)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
