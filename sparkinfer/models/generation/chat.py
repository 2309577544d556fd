"""Prompts for models that were trained on conversations: messages in the model's own template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sparkinfer.models.text_sources import Messages


@dataclass(frozen=True)
class ChatTemplate:
    """A model's template, and what is said before every conversation.

    Attributes:
        tokenizer: which has the template.
        system: a message of the system, for conversations that do not begin with one; None: none.
    """

    tokenizer: Any
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
                    messages, tokenize=False, add_generation_prompt=True
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
    return list(found)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
