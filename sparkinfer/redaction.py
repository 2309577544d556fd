"""Keeps passwords, keys and tokens out of messages, log lines, manifests and reports.

A secret is recognised by the name of a setting (`fs.s3a.secret.key=...`), by how secrets look (URLs
with a password, tokens of known services) and by what this process knows to be one: the values
of such environment variables and Spark settings.

It is used where a text leaves: `exceptions` for every error, `logs` for every log line, `terminal`
for everything that is printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "***"

_SHORTEST = 8
"""Characters of a known value that is looked for; a shorter one is found in ordinary words."""

_ALWAYS = re.compile(r"secret|passw|passphrase|passcode|credential")
_WORDS = frozenset({"token", "signature", "sig", "sas", "pwd"})
_KEYS = frozenset(
    (
        *("access", "account", "api", "auth", "aws", "client", "encryption", "private", "secret"),
        *("shared", "signing", "storage"),
    )
)
"""What precedes `key` in the name of a secret; `key` alone is any key."""

_OF_TOKENIZERS = frozenset(("bos", "cls", "eos", "mask", "pad", "sep", "special", "unk"))
_NOT_THE_VALUE = frozenset(
    (
        *("algorithm", "class", "count", "enabled", "expiration", "expires", "file", "id", "ids"),
        *("interval", "length", "limit", "name", "path", "provider", "providers", "required"),
        *("size", "ttl", "type"),
    )
)
"""Last words of names that say something of a secret without being it."""

_NAMED = re.compile(r"(?<![\w.\-])-*([A-Za-z_][\w.\-]*)(\\?[\"']?\s?[=:]\s?|\s(?=['\"]))(?=\S)")
_VALUE = re.compile(r"\\?\"(?:[^\"\\]|\\.)*\"?|\\?'(?:[^'\\]|\\.)*'?|[^\s,;&'\"(){}\[\]]+")

_TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"
    r"|\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"
    r"|\bgh[opsru]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\bdapi[0-9a-f]{32}(?:-\d)?\b"
    r"|\bAIza[\w\-]{30,}"
    r"|\bxox[abeoprs]-[\w\-]{10,}"
    r"|\beyJ[\w\-]{8,}\.[\w\-]{8,}(?:\.[\w\-]*)?"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?=[\w.~+/=\-]*\d)[\w.~+/=\-]{8,}")
_SCHEME = r"(?:basic|bearer|digest|token)\s+"
_AUTHORIZATION = re.compile(
    rf"(?i)\b(authorization[\"']?\s?[=:]\s?[\"']?(?:{_SCHEME})?)(?!{_SCHEME})[\w.~+/=\-]{{4,}}"
)

_URL = re.compile(r"(?<![A-Za-z0-9+.\-])([A-Za-z][A-Za-z0-9+.\-]*)://(\S*)")
_ORACLE = re.compile(r"(?i)(\bjdbc:oracle:\w+:)[^\s@]+@")
_BARE_USER = re.compile(r"(?<![\w.%+\-/@:])([\w.%+\-]+):(?!\d{1,5}/|/|\s)(\S+)@(?=[\w\[])")
_PORT = re.compile(r"[^\s@:/?#]*:\d{1,5}(?:[/?#]|\Z)")
_WEB = frozenset({"http", "https", "git+https", "ftp"})
_KEYED_STORES = frozenset({"s3", "s3a", "s3n", "gs", "gcs"})
"""Their URLs have no port: what follows a colon there is a secret key."""

_of_this_process: set[str] = set()


def remember_secrets(settings: Mapping[str, str]) -> None:
    """Has the values of settings whose names tell a secret left out of this process's texts."""
    _of_this_process.update(_secret_values(settings))


def is_secret_name(name: str) -> bool:
    """Returns whether the value of a setting of this name is a secret."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", ".", name).lower()
    listed = [word for word in re.split(r"[^a-z0-9]+", words) if word]
    if not listed or listed[-1] in _NOT_THE_VALUE:
        return False
    return (
        _ALWAYS.search(words) is not None
        or any(map(_is_word_of_secret, ["", *listed], listed))
        or any(word != "key" and word.endswith(("apikey", "accesskey")) for word in listed)
    )


def _is_word_of_secret(before: str, word: str) -> bool:
    if word == "key":
        return before in _KEYS
    is_token = word in _WORDS or (word.endswith("token") and word not in _OF_TOKENIZERS)
    return is_token and before not in _OF_TOKENIZERS


def without_secrets(text: str) -> str:
    """Returns the text with `***` for tokens, keys, and passwords and signatures in URLs."""
    for known in sorted(_known(), key=len, reverse=True):
        text = text.replace(known, HIDDEN)
    text = _ORACLE.sub(rf"\1{HIDDEN}@", text)
    text = _URL.sub(_plain_url, text)
    text = _BARE_USER.sub(_without_user, text)
    text = _TOKENS.sub(HIDDEN, text)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    return _without_named(text)


def _known() -> set[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PWD", "OLDPWD")
    }
    token = {os.environ.get("HF_TOKEN", "").strip()} - {""}
    return _of_this_process | _secret_values(environment) | token


def _secret_values(settings: Mapping[str, str]) -> set[str]:
    """Returns the values that are secrets by their names; not paths of files that hold them."""
    return {
        value
        for name, value in settings.items()
        if len(value) >= _SHORTEST and is_secret_name(name) and not _is_path(value)
    }


def _is_path(value: str) -> bool:
    return os.path.exists(value)  # noqa: PTH110 (Path.exists raises for what can be no path)


def _plain_url(match: re.Match[str]) -> str:
    """Returns a URL with its scheme, host and path."""
    scheme, rest = match[1], _without_user_info(match[1].lower(), match[2])
    place, mark, query = rest.partition("?")
    # Elsewhere than on the web, a question mark alone means any character of a name.
    if mark and (match[1].lower() in _WEB or re.match(r"[\w.~\-]+=", query)):
        return f"{scheme}://{place}?{HIDDEN}{_closing(query)}"
    place, mark, fragment = rest.partition("#")
    if mark and re.search(r"=|(?=[^\s/]*\d)[\w\-]{20,}", fragment):
        return f"{scheme}://{place}#{HIDDEN}{_closing(fragment)}"
    return f"{scheme}://{rest}"


def _closing(text: str) -> str:
    """Returns the quotes and brackets with which a text ends: they belong to the sentence."""
    found = re.search(r"['\")\]},;:]*\Z", text)
    return found[0] if found else ""


def _without_user_info(scheme: str, rest: str) -> str:
    """Returns what follows `scheme://` without a user's name and password.

    Up to the last `@`: a password may contain one, a slash, a question mark.
    """
    user, mark, host = rest.rpartition("@")
    if not mark:
        return rest
    first = rest.partition("/")[0]
    has_port = scheme not in _KEYED_STORES and "@" not in first and _PORT.match(rest) is not None
    if ":" in user.partition("/")[0] and not has_port:
        return f"{HIDDEN}@{host}"
    _, mark, place = first.partition("@")
    if mark and scheme in _WEB:  # elsewhere it is a container, an account or a plain user
        return f"{HIDDEN}@{place}{rest[len(first) :]}"
    return rest


def _without_user(match: re.Match[str]) -> str:
    """Returns a match of `_BARE_USER` without the user, unless that was done before."""
    return match[0] if match[2].endswith(HIDDEN) else f"{HIDDEN}@"


def _without_named(text: str) -> str:
    """Returns the text without what follows the name of a secret and `=` or `:`."""
    parts, done = [], 0
    while match := _NAMED.search(text, done):
        parts.append(text[done : match.end()])
        done = match.end()
        value = _VALUE.match(text, done) if is_secret_name(match[1]) else None
        if value is not None and _is_value(match[1], match[2], value[0]):
            quote = value[0][0] if value[0][0] in "'\"" else ""
            parts.append(f"{quote}{HIDDEN}{quote}")
            done = value.end()
    return "".join([*parts, text[done:]])


def _is_value(name: str, separator: str, value: str) -> bool:
    """Returns whether this is a secret and not a number or the next word of a sentence."""
    if separator.isspace() and not _ALWAYS.search(name.lower()):
        return False  # in SQL it is a value: OPTIONS (password '...')
    plain = value.strip("\\'\"")
    if not plain or re.fullmatch(r"\d{1,6}|true|false|none|null|\*+", plain, re.IGNORECASE):
        return False
    is_quoted = value[0] in "\\'\""
    return "=" in separator or is_quoted or re.search(r"\d|[^\w]\w", plain) is not None
