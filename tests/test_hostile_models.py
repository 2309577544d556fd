"""Folders of models that mean harm: refused, or loaded without what they ask for."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.gate import run_gate
from sparkinfer.models.sources import resolve, stage
from sparkinfer.option_groups import LoadingConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of

TIME_LIMIT_S = 60
CODE = "open('ran', 'w')\n"
TEMPLATE = "{{ cycler.__init__.__globals__.os.system('touch ran') }}"
OWN = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
DEFLATED = zipfile.ZIP_DEFLATED
Harm = Callable[[Path], None]


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.fixture
def folder(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of a good model, in a process that reaches no network and does not hang."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    def stop(*_: object) -> None:
        raise AssertionError(f"not done in {TIME_LIMIT_S} s")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT_S)
    (tmp_path / "outside.json").write_text('{"model_type": "bert"}')
    shutil.copyfile(classifier / "model.safetensors", tmp_path / "outside.safetensors")
    yield Path(shutil.copytree(classifier, tmp_path / "model"))
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not (tmp_path / "ran").exists()


def load(folder: Path, **allowed: bool) -> None:
    loading = LoadingConfig(**allowed)
    path = stage(resolve(str(folder), loading=loading), loading)
    run_gate(path, options_of(loading=loading), WorkerSlot("cpu"))


def changed(name: str = "config.json", **settings: Any) -> Harm:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return change


def written(name: str, content: bytes) -> Harm:
    return lambda folder: void((folder / name).write_bytes(content))


def void(_: object) -> None:
    return None


def both(*harms: Harm) -> Harm:
    def do(folder: Path) -> None:
        for harm in harms:
            harm(folder)

    return do


def linked(name: str, target: str) -> Harm:
    def link(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return link


def removed(name: str) -> Harm:
    return lambda folder: (folder / name).unlink()


def indexed(shard: str) -> Harm:
    index = json.dumps({"weight_map": {"classifier.weight": shard}}).encode()
    return both(removed("model.safetensors"), written("model.safetensors.index.json", index))


def headed(header: bytes, length: int | None = None) -> Harm:
    size = struct.pack("<Q", len(header) if length is None else length)
    return written("model.safetensors", size + header)


def nested(name: str) -> Harm:
    return written(name, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


def replaced(old: str, new: str) -> Harm:
    def replace(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(file.read_text().replace(old, new))

    return replace


def piped(name: str) -> Harm:
    return lambda folder: os.mkfifo(folder / name)


TOO_LARGE = {
    "bert.pooler.dense.bias": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 1 << 62]}
}

REFUSED = {
    "pickle": (
        both(removed("model.safetensors"), written("pytorch_model.bin", pickle.dumps(Payload()))),
        "only as a pickle",
    ),
    "own kind of model": (
        both(changed(auto_map=OWN, model_type="evil"), written("evil.py", CODE.encode())),
        "custom Python code",
    ),
    "own tokenizer": (
        both(
            changed(
                "tokenizer_config.json",
                auto_map={"AutoTokenizer": ["evil.Evil", None]},
                tokenizer_class="EvilTokenizer",
            ),
            written("evil.py", CODE.encode()),
        ),
        "'EvilTokenizer', which transformers does not know",
    ),
    "own attention": (changed(attn_implementation="evil/kernel"), "names code on the hub"),
    "own attention inside": (
        changed(text_config={"_attn_implementation": "evil/kernel"}),
        "names code on the hub",
    ),
    "auto_map of another type": (changed(auto_map=5, model_type="evil"), "custom Python code"),
    "link to a file": (linked("vocab.txt", "../outside.json"), "leads out of the folder"),
    "link to a configuration": (linked("config.json", "../outside.json"), "leads out"),
    "link to weights": (linked("model.safetensors", "../outside.safetensors"), "leads out"),
    "link to a device": (linked("vocab.txt", "/dev/zero"), "neither a file nor a folder"),
    "pipe": (piped("vocab.txt"), "neither a file nor a folder"),
    "index that leads out": (indexed("../outside.safetensors"), "names ../outside.safetensors"),
    "index to the root": (indexed("/etc/passwd"), "names /etc/passwd"),
    "weights that lead out": (
        both(
            removed("model.safetensors"),
            changed(transformers_weights="../outside.safetensors"),
        ),
        "no weights",
    ),
    "header of 2**62 bytes": (headed(b"{}", 1 << 62), "header too large"),
    "header of spaces": (headed(b"{" + b" " * (50 << 20) + b"}"), "no weights for"),
    "header that lies": (headed(json.dumps(TOO_LARGE).encode()), "does not load"),
    "nested header": (headed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "does not load"),
    "nested configuration": (nested("config.json"), "nested too deeply"),
    "nested tokenizer_config": (nested("tokenizer_config.json"), "nested too deeply"),
    "nested tokenizer": (nested("tokenizer.json"), "does not load"),
    "negative size": (changed(hidden_size=-1), "does not load"),
    "NaN": (replaced('"hidden_size": 32', '"hidden_size": NaN'), "does not load"),
    "number of 5,000 digits": (replaced("32", "9" * 5000), "not valid JSON"),
    "vocabulary of 10**12": (changed(vocab_size=10**12), "other sizes than config.json says"),
    "10**15 positions": (changed(max_position_embeddings=10**15), "other sizes"),
    "10**9 layers": (changed(num_hidden_layers=10**9), "num_hidden_layers=1000000000, expected"),
    "layers inside": (changed(text_config={"n_layer": 10**6}), "n_layer=1000000, expected"),
    "many experts": (changed(num_hidden_layers=5000, num_experts=5000), "5000 experts in each"),
    "10**9 labels": (changed(id2label=None, num_labels=10**9), "num_labels=1000000000, expected"),
    "no UTF-8": (written("config.json", b'{"model_type": "\xff"}'), "not valid JSON"),
    "no UTF-8 in the tokenizer's": (written("tokenizer_config.json", b'{"a": "\xff"}'), "JSON"),
    "path as a kind": (changed(model_type="../../evil"), "does not load"),
    "mapping as a kind": (changed(model_type={"a": 1}), "does not load"),
    "function as an activation": (changed(hidden_act="os.system"), "does not load"),
    "function as a dtype": (changed(dtype="os.system"), "does not load"),
    "labels as a list": (changed(id2label=[1, 2]), "does not load"),
}

HARMLESS = {
    "own code for a known kind": both(changed(auto_map=OWN), written("evil.py", CODE.encode())),
    "own code for a known tokenizer": changed(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil/evil--evil.Evil", None]}
    ),
    "function as a tokenizer": changed("tokenizer_config.json", tokenizer_class="os.system"),
    "template that runs code": both(
        changed("tokenizer_config.json", chat_template=TEMPLATE),
        written("chat_template.jinja", TEMPLATE.encode()),
    ),
    "names on the network": both(
        changed(_name_or_path="http://192.0.2.1/evil"),
        changed("tokenizer_config.json", name_or_path="http://192.0.2.1/evil"),
    ),
    "files elsewhere": changed(
        "tokenizer_config.json", tokenizer_file="../outside.json", vocab_file="/etc/passwd"
    ),
    "function as a class": changed(architectures=["os.system"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_means_harm_is_refused_in_a_short_message(folder: Path, name: str) -> None:
    harm, why = REFUSED[name]
    harm(folder)
    with pytest.raises(ModelLoadError) as raised:
        load(folder)
    assert why in raised.value.message
    assert len(raised.value.message) <= 2_000


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_never_followed_does_no_harm(folder: Path, name: str) -> None:
    HARMLESS[name](folder)
    load(folder)


def torch_file(value: object) -> bytes:
    import torch

    stored = io.BytesIO()
    torch.save(value, stored)
    return stored.getvalue()


def compressed(archive: bytes) -> bytes:
    made = io.BytesIO()
    before, after = zipfile.ZipFile(io.BytesIO(archive)), zipfile.ZipFile(made, "w", DEFLATED)
    with before, after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    return made.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "archive", "bomb", "no archive"])
def test_pickled_weights_run_nothing_where_they_are_allowed(folder: Path, kind: str) -> None:
    import torch

    content, why = {
        "pickle": (pickle.dumps(Payload()), "something other than tensors"),
        "archive": (torch_file({"a": Payload()}), "something other than tensors"),
        "bomb": (compressed(torch_file(torch.zeros(1 << 22))), "would become 16,77"),
        "no archive": (torch_file(1).replace(b"PK\x01\x02", b"none"), "bin is damaged"),
    }[kind]
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelLoadError, match=why) as raised:
        load(folder, allow_pickle_weights=True)
    assert "weights_only" not in raised.value.message


def test_weights_of_another_program_load_where_they_are_allowed(folder: Path) -> None:
    from safetensors.torch import load_file

    (folder / "pytorch_model.bin").write_bytes(torch_file(load_file(folder / "model.safetensors")))
    (folder / "model.safetensors").unlink()
    load(folder, allow_pickle_weights=True)


def test_links_within_the_folder_and_to_the_blobs_of_the_hubs_cache_are_followed(
    folder: Path, tmp_path: Path
) -> None:
    snapshot, blobs = tmp_path / "models--m" / "snapshots" / "abc", tmp_path / "models--m" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(folder, blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    load(snapshot)
    (folder / "data").mkdir()
    (folder / "config.json").rename(folder / "data" / "config.json")
    (folder / "config.json").symlink_to("data/config.json")
    load(folder)
