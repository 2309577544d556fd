from __future__ import annotations

import time
from pathlib import Path

import pytest

from sparkinfer.redaction import is_secret_name, remember_secrets, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/path", "https://***@host/path"),
        ("s3://AKIA:se/cr+et@bucket/key", "s3://***@bucket/key"),
        ("s3://k:123/45@bucket", "s3://***@bucket"),
        ("https://u:p@ss@host/x and more@y", "https://***@host/x and more@y"),
        ("https://u:p?q#r@host/x", "https://***@host/x"),
        ("https://u:12#x@host/x", "https://***@host/x"),
        ("https://u:it's@host/x", "https://***@host/x"),
        ("https://0123token@host/x.git", "https://***@host/x.git"),
        ("'s3://k:s@b/x' and 's3://b/y'", "'s3://***@b/x' and 's3://b/y'"),
        ("user:pass@host:5432/db", "***@host:5432/db"),
        ("is 'user:pa/ss@host/x'", "is '***@host/x'"),
        ("https://host/x?sig=abc&se=1 ends", "https://host/x?*** ends"),
        ("s3://b/x?X-Amz-Signature=abc", "s3://b/x?***"),
        ("https://host/x#access_token=abc", "https://host/x#***"),
        ("'https://host/x?sig=abc', then", "'https://host/x?***', then"),
        ("jdbc:postgresql://h/d?user=u&password=p", "jdbc:postgresql://h/d?***"),
        ("jdbc:sqlserver://h:1433;user=u;password=p;x=y", "jdbc:sqlserver://h:1433;user=u;"),
        ("jdbc:oracle:thin:scott/tiger@h:1521", "jdbc:oracle:thin:***@h:1521"),
        ("AccountName=a;AccountKey=bm90aGluZw==;x=y", "AccountName=a;AccountKey=***;x=y"),
        ("SharedAccessSignature=sv=2020&sig=abc", "SharedAccessSignature=***"),
        ("?sv=2020-08-04&sig=a%2Fb", "?sv=2020-08-04&sig=***"),
        ("fs.s3a.secret.key=abc is", "fs.s3a.secret.key=*** is"),
        ("fs.azure.account.key.a.blob.core.windows.net=abc", "core.windows.net=***"),
        ("{'password': 'a b', 'user': 'u'}", "{'password': '***', 'user': 'u'}"),
        ('{"client_secret":"a\\"b"}', '{"client_secret":"***"}'),
        ("OPTIONS (user 'u', password 'abc')", "OPTIONS (user 'u', password '***')"),
        ("error: password=abc", "error: password=***"),
        ("-Djavax.net.ssl.keyStorePassword=abc", "-Djavax.net.ssl.keyStorePassword=***"),
        ("hf_tokne: hf_abcdefghijklmnopqrstuvwx.", "hf_tokne: ***."),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("ghp_abcdefghijklmnopqrstuvwxyz012345", "***"),
        ("dapi0123456789abcdef0123456789abcdef", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc", "***"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ("sent bearer 0123456789abcdef", "sent bearer ***"),
        ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----", "***"),
    ],
)
def test_passwords_signatures_and_tokens_are_left_out(text: str, shown: str) -> None:
    found = without_secrets(text)
    assert shown in found
    assert without_secrets(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "nothing@to hide: /a/b?c",
        "/data/user@host/part-?.parquet",
        "s3://bucket/a@b/part-?.parquet",
        "https://host:8080/path/@user/x",
        "https://host/docs/page.html#section-2",
        "abfss://container@account.dfs.core.windows.net/x",
        "hdfs://name:8020/a@b",
        "models:/name@champion",
        "label_col='token': there is no column 'token'",
        "the label 'token' is unknown",
        "the token 'good' is unknown",
        "batching.max_batch_tokens=4096: expected an integer",
        "pad_token='[PAD]', eos_token_id=50256",
        "--set 'max_length': expected KEY=VALUE, such as batching.window_rows=64",
        "token 50300 is beyond the vocabulary",
        "invalid token: expected one of the vocabulary",
        "spark.hadoop.fs.s3a.aws.credentials.provider=org.apache.Provider",
        "primary_key=7; check name, connection and credentials",
        "hf_tokenizers and hf_transformers",
        "bearer authentication",
        "C:/a:b and 10:30:15",
        "tokenizer: ValueError: bad",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert without_secrets(text) == text


def test_the_token_of_the_environment_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "unusual")
    assert without_secrets("401 for unusual") == "401 for ***"


def test_values_of_variables_are_left_out_by_the_names_of_the_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "correct horse")
    monkeypatch.setenv("DB_PASSWORD_FILE", "ordinary words")
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    text = f"correct horse and ordinary words in {tmp_path}"
    assert without_secrets(text) == f"*** and ordinary words in {tmp_path}"


def test_values_of_secret_settings_are_left_out_wherever_they_appear() -> None:
    remember_secrets({"spark.hadoop.fs.s3a.secret.key": "wJalrXUtnFEMI", "spark.x": "a value of"})
    assert without_secrets("a value of wJalrXUtnFEMI") == "a value of ***"


@pytest.mark.parametrize(
    "name", ["awsSecretAccessKey", "spark.ssl.keyPassword", "HF_TOKEN", "x.accessToken", "apikey"]
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["key", "pad_token", "tokens", "keyboard", "monkey", "path", ""])
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("text", ["a" * 200_000, "a:" * 100_000, "a@b:" * 50_000, "://" * 50_000])
def test_a_long_text_takes_no_long_time(text: str) -> None:
    before = time.process_time()
    without_secrets(text)
    assert time.process_time() - before < 10  # minutes if it grew with the square of the length
