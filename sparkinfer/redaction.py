"""Keeps passwords and tokens out of messages, manifests and reports."""

from __future__ import annotations

import os
import re


def without_secrets(text: str) -> str:
    """Returns the text without tokens, and without passwords and signatures in URLs."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        text = text.replace(token, "***")
    text = re.sub(r"\bhf_[A-Za-z0-9]{20,}", "***", text)
    # Up to the last @: a password may contain one, and a slash.
    text = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(r"(://[^\s?]+)\?[^\s'\"]+", r"\1?***", text)
