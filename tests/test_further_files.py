"""Files that a task reads beside those of transformers, also in folders of a model's folder."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.files import matches
from sparkinfer.models.sources import resolve, stage
from sparkinfer.option_groups import LoadingConfig
from tests.fake_hub import FakeHub, ask, closed_port
from tests.test_sources import write_json, write_mlflow_folder, write_model, write_weights

SAFE = LoadingConfig()
PICKLE = LoadingConfig(allow_pickle_weights=True)
FILES = ("modules.json", "[0-9]_*/config.json", "[0-9]_*/*.safetensors", "[0-9]_*/*.bin")
NAMES = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 438\n"


def write_nested(folder: Path) -> Path:
    """Writes a model with the files that `FILES` names, and others next to them."""
    write_model(folder)
    write_json(folder / "modules.json", [])
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f'{{"is": "{name}"}}')
    write_weights(folder / "2_Dense" / "model.safetensors")
    for name in ("1_Pooling/README.md", "checkpoint-1/config.json", "1_Pooling/1_Deep/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not JSON")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_nested(tmp_path / "model")


@pytest.fixture
def caching(tmp_path: Path) -> LoadingConfig:
    return LoadingConfig(cache_dir=str(tmp_path / "cache"))


def fingerprint(folder: Path, files: tuple[str, ...] = FILES) -> str:
    return resolve(str(folder), loading=SAFE, files=files).fingerprint


def files_of(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found)


WANTED = sorted(
    [
        *("config.json", "model.safetensors", "modules.json"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
        *NAMES,
    ]
)


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("config.json", "*.json", True),
        ("1_Pooling/config.json", "*.json", False),
        ("1_Pooling/config.json", "*/*.json", True),
        ("a/b/config.json", "*/config.json", False),
        ("1_Pooling/config.json", "2_*/config.json", False),
    ],
)
def test_a_star_stands_for_no_slash(name: str, pattern: str, expected: bool) -> None:
    assert matches(name, [pattern]) == expected


def test_without_further_files_the_fingerprint_is_that_of_the_flat_model(
    model: Path, tmp_path: Path
) -> None:
    assert fingerprint(model, ()) == fingerprint(write_model(tmp_path / "flat"), ())
    assert fingerprint(model, FILES) != fingerprint(model, ())


@pytest.mark.parametrize("name", ["modules.json", *NAMES])
def test_each_further_file_is_part_of_the_fingerprint(model: Path, name: str) -> None:
    before = fingerprint(model)
    if name.endswith(".safetensors"):
        write_weights(model / name, seed=1)
    else:
        (model / name).write_text('{"changed": 1}')
    assert fingerprint(model) != before


def test_a_file_in_another_folder_is_another_model(model: Path) -> None:
    before = fingerprint(model)
    (model / "1_Pooling").rename(model / "3_Pooling")
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    "name", ["1_Pooling/README.md", "checkpoint-1/config.json", "1_Pooling/1_Deep/config.json"]
)
def test_other_files_in_folders_are_not(model: Path, name: str) -> None:
    before = fingerprint(model)
    (model / name).write_text("changed")
    assert fingerprint(model) == before


def test_a_source_keeps_its_further_files_and_checks_them_where_it_is_staged(model: Path) -> None:
    source = pickle.loads(pickle.dumps(resolve(str(model), loading=SAFE, files=FILES)))
    assert stage(source, SAFE) == model
    (model / "1_Pooling" / "config.json").write_text('{"changed": 1}')
    with pytest.raises(ModelLoadError, match="as on the driver"):
        stage(source, SAFE)


def link_file(model: Path, outside: Path) -> None:
    (model / "1_Pooling" / "config.json").unlink()
    (model / "1_Pooling" / "config.json").symlink_to(outside / "config.json")


def link_folder(model: Path, outside: Path) -> None:
    shutil.rmtree(model / "1_Pooling")
    (model / "1_Pooling").symlink_to(outside)


def pipe(model: Path, _: Path) -> None:
    (model / "1_Pooling" / "config.json").unlink()
    os.mkfifo(model / "1_Pooling" / "config.json")


def only_pickle(model: Path, _: Path) -> None:
    (model / "2_Dense" / "model.safetensors").rename(model / "2_Dense" / "pytorch_model.bin")


def pointer(name: str) -> Callable[[Path, Path], None]:
    return lambda model, _: (model / name).write_text(POINTER) and None


REFUSED = {
    "link to a file": (link_file, "1_Pooling/config.json is a link that leads out of the folder"),
    "link to a folder": (link_folder, "1_Pooling is a link that leads out of the folder"),
    "pipe": (pipe, "1_Pooling/config.json is neither a file nor a folder"),
    "pickle": (only_pickle, r"2_Dense/pytorch_model.bin.*--set loading.allow_pickle_weights=true"),
    "pointer": (pointer("1_Pooling/config.json"), "1_Pooling/config.json is a Git LFS pointer"),
    "pointer to weights": (pointer(NAMES[-1]), "2_Dense/model.safetensors is a Git LFS pointer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_harm_in_a_nested_folder_is_refused(model: Path, tmp_path: Path, case: str) -> None:
    harm, expected = REFUSED[case]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    harm(model, tmp_path / "outside")
    with pytest.raises(ModelLoadError, match=expected) as caught:
        fingerprint(model)
    assert repr(str(model)) in caught.value.message


def test_a_link_within_the_folder_is_followed(model: Path) -> None:
    before = fingerprint(model)
    (model / "data").mkdir()
    (model / "1_Pooling" / "config.json").rename(model / "data" / "pooling.json")
    (model / "1_Pooling" / "config.json").symlink_to("../data/pooling.json")
    assert fingerprint(model) == before


def test_nested_pickles_count_where_they_are_allowed_and_alone(model: Path) -> None:
    before = fingerprint(model)
    shutil.copyfile(model / "model.safetensors", model / "2_Dense" / "pytorch_model.bin")
    assert fingerprint(model) == before
    only_pickle(model, model)
    taken = resolve(str(model), loading=PICKLE, files=FILES).fingerprint
    (model / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert resolve(str(model), loading=PICKLE, files=FILES).fingerprint != taken


def test_a_remote_model_brings_its_further_files(model: Path, caching: LoadingConfig) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(model), "/further-files", recursive=True)
    try:
        source = resolve("memory://further-files", loading=caching, files=FILES)
    finally:
        memory.rm("/further-files", recursive=True)
    assert (source.kind, source.fingerprint) == ("remote", fingerprint(model))
    assert files_of(stage(source, caching)) == WANTED


def test_a_remote_nested_pickle_is_refused_before_anything_is_fetched(
    model: Path, caching: LoadingConfig
) -> None:
    only_pickle(model, model)
    memory = fsspec.filesystem("memory")
    memory.put(str(model), "/further-files", recursive=True)
    try:
        with pytest.raises(ModelLoadError, match="allow_pickle_weights"):
            resolve("memory://further-files", loading=caching, files=FILES)
    finally:
        memory.rm("/further-files", recursive=True)
    assert not list(Path(str(caching.cache_dir)).rglob("*.json"))


def test_an_mlflow_folder_brings_its_further_files(
    model: Path, tmp_path: Path, caching: LoadingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    logged = write_mlflow_folder(tmp_path / "logged")
    for name in ("modules.json", *NAMES):
        (logged / "model" / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(model / name, logged / "model" / name)
    source = resolve(str(logged), loading=caching, files=FILES)
    assert (source.kind, source.fingerprint) == ("mlflow_folder", fingerprint(model))
    assert files_of(stage(source, caching)) == WANTED


def test_an_mlflow_folder_with_a_nested_link_out_is_refused(
    tmp_path: Path, caching: LoadingConfig
) -> None:
    logged = write_mlflow_folder(tmp_path / "logged")
    (logged / "model" / "1_Pooling").symlink_to(tmp_path)
    with pytest.raises(ModelLoadError, match="1_Pooling is a link that leads out"):
        resolve(str(logged), loading=caching, files=FILES)


def test_a_hub_model_brings_its_further_files_and_finds_them_without_a_connection(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    hub.add("org/nested", model)
    call = {"name": "org/nested", "files": FILES}
    (online,) = ask(tmp_path, call, HF_ENDPOINT=hub.url)
    assert online["source"]["fingerprint"] == fingerprint(model)
    assert online["files"] == WANTED
    again = ask(tmp_path, call, {"source": online["source"]}, HF_ENDPOINT=closed_port())
    assert again == [online, online]


def test_a_hub_models_nested_pickle_is_refused_before_anything_is_fetched(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    only_pickle(model, model)
    hub.add("org/pickle", model)
    (refused,) = ask(tmp_path, {"name": "org/pickle", "files": FILES}, HF_ENDPOINT=hub.url)
    assert "--set loading.allow_pickle_weights=true" in refused["error"]
    assert "model.safetensors" not in hub.fetched


def test_a_cache_that_was_filled_for_less_is_not_taken_for_the_whole_model(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    hub.add("org/nested", model)
    ask(tmp_path, {"name": "org/nested"}, HF_ENDPOINT=hub.url)
    call = {"name": "org/nested", "files": FILES}
    (refused,) = ask(tmp_path, call, HF_HUB_OFFLINE="1")
    assert "does not say whether the model has the file modules.json" in refused["error"]
    (online,) = ask(tmp_path, call, HF_ENDPOINT=hub.url)
    assert online["files"] == WANTED


def test_a_cache_knows_which_files_a_hub_model_does_not_have(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/flat", write_model(tmp_path / "flat"))
    call = {"name": "org/flat", "files": FILES}
    (online,) = ask(tmp_path, call, HF_ENDPOINT=hub.url)
    assert ask(tmp_path, call, HF_HUB_OFFLINE="1") == [online]
    assert online["source"]["files"] == list(FILES)
