from __future__ import annotations

import pytest

from sparkinfer.redaction import without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/path", "https://***@host/path"),
        ("s3://AKIA:se/cr+et@bucket/key", "s3://***@bucket/key"),
        ("https://u:p@ss@host/x and more@y", "https://***@host/x and more@y"),
        ("'s3://k:s@b/x' and 's3://b/y'", "'s3://***@b/x' and 's3://b/y'"),
        ("https://host/x?sig=abc&se=1 ends", "https://host/x?*** ends"),
        ("token hf_abcdefghijklmnopqrstuvwx.", "token ***."),
        ("nothing@to hide: /a/b?c", "nothing@to hide: /a/b?c"),
    ],
)
def test_passwords_signatures_and_tokens_are_left_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_the_token_of_the_environment_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "unusual-token")
    assert without_secrets("401 for unusual-token") == "401 for ***"
