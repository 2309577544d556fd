"""Facts of `sparkinfer.models.sources`: the hub is a small HTTP server on 127.0.0.1."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from safetensors.numpy import save_file

from sparkinfer.exceptions import ConfigError, EngineUnavailableError, ModelLoadError
from sparkinfer.models import digests
from sparkinfer.models.sources import ModelSource, cache_folder, resolve, stage
from sparkinfer.option_groups import LoadingConfig
from tests.fake_hub import COMMIT, FakeHub, ask, closed_port, finish, start

SAFE = LoadingConfig()
TRUSTING = LoadingConfig(trust_remote_code=True)
PICKLE = LoadingConfig(allow_pickle_weights=True)
OLD_COMMIT = "b" * 40


def write_model(folder: Path, *, seed: int = 0, config: dict[str, Any] | None = None) -> Path:
    """Writes a folder with a model's files, small and without a model's meaning."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"model_type": "bert", **(config or {})})
    write_json(folder / "tokenizer.json", {"version": "1.0"})
    write_json(folder / "tokenizer_config.json", {"model_max_length": 32})
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    write_weights(folder / "model.safetensors", seed)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def write_weights(path: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    save_file({"weight": rng.standard_normal((4, 4), dtype=np.float32)}, path)


def write_shards(folder: Path, *shards: str) -> None:
    """Replaces the weights by shards and the index that names them."""
    (folder / "model.safetensors").unlink()
    for shard in shards:
        write_weights(folder / shard)
    names = {f"layer.{number}": shard for number, shard in enumerate(shards)}
    write_json(folder / "model.safetensors.index.json", {"weight_map": names})


def make_pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def fingerprint(folder: Path, loading: LoadingConfig = SAFE) -> str:
    return resolve(str(folder), loading=loading).fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def caching(tmp_path: Path) -> LoadingConfig:
    return LoadingConfig(cache_dir=str(tmp_path / "cache"))


# --- folders -------------------------------------------------------------------------------


def test_folder_is_used_in_place(model: Path) -> None:
    source = resolve(str(model), loading=SAFE)
    assert (source.kind, source.name_or_path, source.revision) == ("folder", str(model), None)
    assert stage(source, SAFE) == model


def test_relative_folder_is_found_after_the_working_directory_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = resolve("model", loading=SAFE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert (source.kind, source.name_or_path) == ("folder", "model")
    assert stage(source, SAFE) == model


@pytest.mark.parametrize("prefix", ["file://", "file:", "~/../"])
def test_other_spellings_of_a_folder_mean_the_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    name = f"{prefix}{model.name}" if prefix.startswith("~") else f"{prefix}{model}"
    source = resolve(name, loading=SAFE)
    assert (source.kind, source.location) == ("folder", str(model))


@pytest.mark.parametrize(
    ("name", "folder"),
    [("dbfs:/models/x", "/dbfs/models/x"), ("dbfs:/Volumes/a/b/c/x", "/Volumes/a/b/c/x")],
)
def test_dbfs_path_means_the_folder_where_databricks_mounts_it(name: str, folder: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        resolve(name, loading=SAFE)
    assert repr(name) in caught.value.message
    assert f"there is no folder {folder!r}" in caught.value.message


@pytest.mark.parametrize("name", ["/no/such/model", "./models/foo", "../models/foo"])
def test_path_that_does_not_exist_is_never_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(
        ModelLoadError, match=r"there is no folder .*; expected a folder that holds"
    ):
        resolve(name, loading=SAFE)


def test_file_in_place_of_a_folder_is_refused(model: Path) -> None:
    with pytest.raises(ModelLoadError, match="it is a file; expected a folder"):
        resolve(str(model / "model.safetensors"), loading=SAFE)


def test_revision_of_a_folder_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"revision='v1'.*only hub models have revisions"):
        resolve(str(model), revision="v1", loading=SAFE)


def test_source_survives_pickling(model: Path) -> None:
    source = resolve(str(model), loading=SAFE)
    assert pickle.loads(pickle.dumps(source)) == source


# --- checks --------------------------------------------------------------------------------


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 438\n"


def drop(*names: str) -> Any:
    return lambda folder: [(folder / name).unlink() for name in names]


def put(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


def shard_lost(folder: Path) -> None:
    write_shards(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()


def shard_outside(folder: Path) -> None:
    write_shards(folder, "../outside.safetensors")


def pickle_as_shard(folder: Path) -> None:
    write_shards(folder, "weights.bin")


CHECKS = {
    "no config": (drop("config.json"), "no config.json .*found: model.safetensors"),
    "config is no JSON": (put("config.json", "{"), "config.json is not valid JSON"),
    "config is a list": (put("config.json", "[]"), "config.json holds no JSON object"),
    "no weights": (drop("model.safetensors"), "no weights, expected model.safetensors"),
    "no tokenizer": (
        drop("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
        "no tokenizer files, expected tokenizer.json",
    ),
    "pickle": (make_pickle_only, r"--set loading\.allow_pickle_weights=true"),
    "pickle among shards": (pickle_as_shard, r"pickle \(weights.bin\)"),
    "own code": (
        put("config.json", '{"model_type": "my_own", "auto_map": {"AutoModel": "m.M"}}'),
        r"model_type 'my_own', which .* does not know.*--set loading\.trust_remote_code=true",
    ),
    "weights are a pointer": (put("model.safetensors", POINTER), r"model.safetensors is a Git LFS"),
    "tokenizer is a pointer": (put("tokenizer.json", POINTER), r"tokenizer.json is a Git LFS p"),
    "config is a pointer": (put("config.json", POINTER), r"config.json is a Git LFS.*git lfs pull"),
    "MLflow's": (
        lambda f: (drop("config.json")(f), put("MLmodel", "")(f)),
        "MLmodel cannot be read",
    ),
    "shard absent": (
        shard_lost,
        r"names model-00002-of-00002.safetensors, which is missing \(1 of 2 shards",
    ),
    "shard outside": (shard_outside, "names ../outside.safetensors, which is missing"),
    "index is no JSON": (
        lambda f: (drop("model.safetensors")(f), put("model.safetensors.index.json", "x")(f)),
        "model.safetensors.index.json is not valid JSON",
    ),
    "index without map": (
        lambda f: (drop("model.safetensors")(f), put("model.safetensors.index.json", "{}")(f)),
        "has no weight_map",
    ),
    "adapter": (put("adapter_config.json", "{}"), "merge it into its base"),
    "weights named but absent": (
        put("config.json", '{"transformers_weights": "best.safetensors"}'),
        "no weights, expected best.safetensors",
    ),
}


@pytest.mark.parametrize("case", CHECKS)
def test_folder_that_cannot_be_loaded_is_refused_with_its_name_and_a_remedy(
    model: Path, case: str
) -> None:
    damage, expected = CHECKS[case]
    damage(model)
    with pytest.raises(ModelLoadError, match=expected) as caught:
        resolve(str(model), loading=SAFE)
    assert repr(str(model)) in caught.value.message


def test_pickle_weights_are_taken_when_allowed(model: Path) -> None:
    make_pickle_only(model)
    before = fingerprint(model, PICKLE)
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert fingerprint(model, PICKLE) != before


def test_own_code_is_part_of_the_fingerprint_when_trusted(model: Path) -> None:
    write_json(model / "config.json", {"auto_map": {"AutoModel": "m.M"}})
    (model / "m.py").write_text("class M: ...\n")
    before = fingerprint(model, TRUSTING)
    (model / "m.py").write_text("class M: pass\n")
    assert fingerprint(model, TRUSTING) != before


def test_own_code_of_a_kind_that_transformers_knows_may_be_left_out(model: Path) -> None:
    write_json(model / "config.json", {"model_type": "bert", "auto_map": {"AutoModel": "m.M"}})
    (model / "m.py").write_text("class M: ...\n")
    before = fingerprint(model)
    (model / "m.py").write_text("class M: pass\n")
    assert fingerprint(model) == before


def test_whole_set_of_shards_is_accepted_and_every_shard_counts(model: Path) -> None:
    write_shards(model, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    before = fingerprint(model)
    write_weights(model / "model-00002-of-00002.safetensors", seed=1)
    assert fingerprint(model) != before


# --- fingerprint ---------------------------------------------------------------------------


def test_same_files_under_another_path_have_the_same_fingerprint(
    model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    assert fingerprint(copy) == fingerprint(model)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "vocab.txt", "spiece.model"]
)
def test_file_that_matters_changes_the_fingerprint(model: Path, name: str) -> None:
    before = fingerprint(model)
    (model / name).write_text('{"changed": 1}')
    assert fingerprint(model) != before


def test_weights_change_the_fingerprint(model: Path) -> None:
    before = fingerprint(model)
    write_weights(model / "model.safetensors", seed=1)
    assert fingerprint(model) != before


def test_files_that_exchange_their_content_change_the_fingerprint(model: Path) -> None:
    before = fingerprint(model)
    contents = [(model / name).read_bytes() for name in ("tokenizer.json", "vocab.txt")]
    (model / "vocab.txt").write_bytes(contents[0])
    (model / "tokenizer.json").write_bytes(contents[1])
    assert fingerprint(model) != before


def test_renamed_file_changes_the_fingerprint(model: Path) -> None:
    (model / "spiece.model").write_text("x")
    before = fingerprint(model)
    (model / "spiece.model").rename(model / "source.model")
    assert fingerprint(model) != before


def test_files_that_do_not_matter_leave_the_fingerprint_alone(model: Path) -> None:
    before = fingerprint(model)
    names = ["README.md", "training_args.bin", "optimizer.pt", "trainer_state.json", "flax.msgpack"]
    for name in [*names, "pytorch_model.bin", "modeling_own.py"]:
        (model / name).write_text("x")
    for name in [".git", "checkpoint-1"]:
        (model / name).mkdir()
        (model / name / "config.json").write_text("x")
    assert fingerprint(model) == before


# --- staging a folder on another node ------------------------------------------------------


def test_folder_absent_on_the_node_is_an_error_that_names_the_remedy(model: Path) -> None:
    source = resolve(str(model), loading=SAFE)
    shutil.rmtree(model)
    with pytest.raises(ModelLoadError, match="put the model on storage that every node sees"):
        stage(source, SAFE)


def test_other_model_at_the_same_path_is_an_error(model: Path) -> None:
    source = resolve(str(model), loading=SAFE)
    write_weights(model / "model.safetensors", seed=1)
    with pytest.raises(ModelLoadError, match="as on the driver; put the model on storage"):
        stage(source, SAFE)


# --- remote folders ------------------------------------------------------------------------


class WatchedFileSystem(LocalFileSystem):
    """Local files as `watched://`, copied slowly and into the log WATCHED_LOG.

    Remembers listings, as the file systems of object stores do.
    """

    protocol = "watched"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("watched://"))

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **kwargs)
        return self.dircache[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        super().get_file(rpath, lpath, **kwargs)
        with Path(os.environ["WATCHED_LOG"]).open("a") as log:
            log.write(f"{Path(rpath).name}\n")
        time.sleep(float(os.environ.get("WATCHED_PAUSE_S", "0.05")))


fsspec.register_implementation("watched", WatchedFileSystem, clobber=True)


@pytest.fixture
def watched(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a remote model; what is fetched appears in the file `copies`."""
    (tmp_path / "copies").touch()
    monkeypatch.setenv("WATCHED_LOG", str(tmp_path / "copies"))
    return f"watched://{model}"


def copies(tmp_path: Path) -> Counter[str]:
    return Counter((tmp_path / "copies").read_text().split())


def stage_at_once(barrier: Any, source: ModelSource, loading: LoadingConfig) -> str:
    barrier.wait(timeout=60)
    return str(stage(source, loading))


def stage_slowly(source: ModelSource, loading: LoadingConfig) -> None:
    """Stages in a process that has to import this module, and with it the file system."""
    os.environ["WATCHED_PAUSE_S"] = "600"
    stage(source, loading)


def test_processes_of_one_node_fetch_a_remote_model_once(
    watched: str, tmp_path: Path, caching: LoadingConfig
) -> None:
    source = resolve(watched, loading=LoadingConfig(cache_dir=str(tmp_path / "driver")))
    (tmp_path / "copies").write_text("")
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(4, mp_context=context) as pool:
        barrier = manager.Barrier(4)
        calls = [pool.submit(stage_at_once, barrier, source, caching) for _ in range(4)]
        folders = {call.result(timeout=120) for call in calls}
    assert folders == {str(cache_folder(caching) / source.fingerprint)}
    assert set(copies(tmp_path).values()) == {1}
    assert "model.safetensors" in copies(tmp_path)


def test_staging_that_was_killed_leaves_nothing_that_is_taken_for_complete(
    watched: str, model: Path, tmp_path: Path, caching: LoadingConfig
) -> None:
    source = resolve(watched, loading=LoadingConfig(cache_dir=str(tmp_path / "driver")))
    (tmp_path / "copies").write_text("")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=stage_slowly, args=(source, caching))
    process.start()
    while not copies(tmp_path) and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert copies(tmp_path).total() == 1
    assert not (cache_folder(caching) / source.fingerprint).exists()
    assert (stage(source, caching) / "vocab.txt").read_bytes() == (model / "vocab.txt").read_bytes()
    assert not list(cache_folder(caching).glob("*.part"))


def test_remote_model_has_the_fingerprint_of_the_same_folder(
    watched: str, model: Path, caching: LoadingConfig
) -> None:
    source = resolve(watched, loading=caching)
    assert source.kind == "remote"
    assert source.fingerprint == fingerprint(model)


def test_remote_model_brings_only_the_files_that_matter(
    watched: str, model: Path, caching: LoadingConfig
) -> None:
    for name in ["README.md", "pytorch_model.bin", "modeling_own.py"]:
        (model / name).write_text("x")
    (model / "checkpoint-1").mkdir()
    (model / "checkpoint-1" / "config.json").write_text("not JSON")
    names = {path.name for path in stage(resolve(watched, loading=caching), caching).iterdir()}
    assert names == {
        *("config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    }


def test_remote_model_is_checked_before_its_weights_are_copied(
    watched: str, model: Path, tmp_path: Path, caching: LoadingConfig
) -> None:
    (model / "config.json").write_text('{"auto_map": {}}')
    with pytest.raises(ModelLoadError, match="trust_remote_code"):
        resolve(watched, loading=caching)
    assert not copies(tmp_path)


def test_remote_model_that_changed_since_the_driver_saw_it_is_refused(
    watched: str, model: Path, tmp_path: Path, caching: LoadingConfig
) -> None:
    source = resolve(watched, loading=LoadingConfig(cache_dir=str(tmp_path / "driver")))
    write_weights(model / "model.safetensors", seed=1)
    with pytest.raises(ModelLoadError, match="changed since the run began, run again"):
        stage(source, caching)


def test_remote_model_that_changed_is_fetched_anew_by_the_next_run(
    watched: str, model: Path, caching: LoadingConfig
) -> None:
    before = resolve(watched, loading=caching)
    (model / "spiece.model").write_text("new")
    after = resolve(watched, loading=caching)
    assert after.fingerprint == fingerprint(model) != before.fingerprint
    assert stage(before, caching) != stage(after, caching)


def test_damaged_copy_in_the_cache_is_refused(watched: str, caching: LoadingConfig) -> None:
    source = resolve(watched, loading=caching)
    (stage(source, caching) / "vocab.txt").write_text("other")
    with pytest.raises(ModelLoadError, match="otherwise remove that folder"):
        stage(source, caching)


def test_memory_url_is_a_remote_model(model: Path, caching: LoadingConfig) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(model), "/sources-test", recursive=True)
    try:
        source = resolve("memory://sources-test", loading=caching)
    finally:
        memory.rm("/sources-test", recursive=True)
    assert (source.kind, source.fingerprint) == ("remote", fingerprint(model))


def test_remote_folder_that_does_not_exist_is_an_error(caching: LoadingConfig) -> None:
    with pytest.raises(ModelLoadError, match=r"'memory://nothing-here'.*FileNotFoundError"):
        resolve("memory://nothing-here", loading=caching)


def test_unknown_protocol_is_an_error(caching: LoadingConfig) -> None:
    with pytest.raises(ModelLoadError, match=r"'nonsense://bucket/model'.*nonsense"):
        resolve("nonsense://bucket/model", loading=caching)


def test_password_in_a_url_is_in_no_message(caching: LoadingConfig) -> None:
    with pytest.raises(ModelLoadError) as caught:
        resolve("nonsense://user:secret1@bucket/model?sig=secret2", loading=caching)
    assert "secret" not in caught.value.message
    assert "bucket/model" in caught.value.message


def test_cache_folder_that_is_no_folder_is_an_error(watched: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelLoadError, match=r"--set loading\.cache_dir"):
        resolve(watched, loading=LoadingConfig(cache_dir=str(tmp_path / "file")))


def test_cache_folder_is_the_option_then_the_environment_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPARKINFER_CACHE", raising=False)
    assert cache_folder(SAFE) == tmp_path / ".cache" / "sparkinfer" / "models"
    monkeypatch.setenv("SPARKINFER_CACHE", str(tmp_path / "env"))
    assert cache_folder(SAFE) == tmp_path / "env"
    assert cache_folder(LoadingConfig(cache_dir="/given")) == Path("/given")


# --- the hub -------------------------------------------------------------------------------


def test_hub_model_is_pinned_to_its_commit_and_brings_only_what_matters(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    for name in ["README.md", "pytorch_model.bin", "tf_model.h5", "own.py", "onnx.safetensors"]:
        (model / name).write_text("x")
    hub.add("org/tiny", model)
    hub.add("org/tiny", write_model(tmp_path / "old", seed=1), OLD_COMMIT, ref="v1")
    main, tagged = ask(
        tmp_path, {"name": "org/tiny"}, {"name": "org/tiny", "revision": "v1"}, HF_ENDPOINT=hub.url
    )
    assert main["source"]["kind"] == "hub"
    assert (main["source"]["revision"], tagged["source"]["revision"]) == (COMMIT, OLD_COMMIT)
    assert main["source"]["fingerprint"] == fingerprint(model)
    assert tagged["source"]["fingerprint"] == fingerprint(tmp_path / "old")
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert main["files"] == [*wanted, "vocab.txt"]


def test_hub_weights_are_pickles_only_where_allowed_and_without_safetensors(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    (model / "pytorch_model.bin").write_text("x")
    hub.add("org/both", model)
    make_pickle_only(write_model(tmp_path / "pickle"))
    hub.add("org/pickle", tmp_path / "pickle")
    both, refused, taken = ask(
        tmp_path,
        {"name": "org/both", "loading": {"allow_pickle_weights": True}},
        {"name": "org/pickle"},
        {"name": "org/pickle", "loading": {"allow_pickle_weights": True}},
        HF_ENDPOINT=hub.url,
    )
    assert "pytorch_model.bin" not in both["files"]
    assert "--set loading.allow_pickle_weights=true" in refused["error"]
    assert "pytorch_model.bin" in taken["files"]
    assert hub.fetched["pytorch_model.bin"] == 1


def test_hub_code_is_fetched_only_when_trusted(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    write_json(model / "config.json", {"auto_map": {"AutoModel": "own.M"}})
    (model / "own.py").write_text("class M: ...\n")
    hub.add("org/code", model)
    refused, taken = ask(
        tmp_path,
        {"name": "org/code"},
        {"name": "org/code", "loading": {"trust_remote_code": True}},
        HF_ENDPOINT=hub.url,
    )
    assert "--set loading.trust_remote_code=true" in refused["error"]
    assert "own.py" in taken["files"]
    assert hub.fetched["model.safetensors"] == hub.fetched["own.py"] == 1


def test_cached_hub_model_is_found_offline_and_staged_without_a_request(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    hub.add("org/tiny", model)
    (online,) = ask(tmp_path, {"name": "org/tiny"}, HF_ENDPOINT=hub.url)
    switched_off = ask(
        tmp_path, {"name": "org/tiny"}, {"source": online["source"]}, HF_HUB_OFFLINE="1"
    )
    no_connection = ask(
        tmp_path, {"name": "org/tiny"}, {"source": online["source"]}, HF_ENDPOINT=closed_port()
    )
    assert switched_off == no_connection == [online, online]
    before = hub.requests
    assert ask(tmp_path, {"source": online["source"]}, HF_ENDPOINT=hub.url) == [online]
    assert hub.requests == before


def test_hub_model_is_fetched_into_the_cache_folder_that_was_given(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    hub.add("org/tiny", model)
    loading = {"cache_dir": str(tmp_path / "given")}
    (found,) = ask(tmp_path, {"name": "org/tiny", "loading": loading}, HF_ENDPOINT=hub.url)
    assert Path(found["folder"]).is_relative_to(tmp_path / "given")
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_processes_of_one_node_fetch_a_hub_model_once(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    hub.add("org/tiny", model)
    (driver,) = ask(tmp_path / "driver", {"name": "org/tiny"}, HF_ENDPOINT=hub.url)
    hub.fetched.clear()
    call = {"source": driver["source"]}
    workers = [start(tmp_path, call, HF_ENDPOINT=hub.url) for _ in range(4)]
    folders = {finish(worker)[0]["folder"] for worker in workers}
    assert len(folders) == 1
    assert hub.fetched["model.safetensors"] == 1


def test_hub_download_that_broke_off_is_not_taken_for_complete(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    hub.add("org/tiny", model)
    hub.broken_files = {"vocab.txt"}
    (broken,) = ask(tmp_path, {"name": "org/tiny"}, HF_ENDPOINT=hub.url)
    (offline,) = ask(tmp_path, {"name": "org/tiny"}, HF_HUB_OFFLINE="1")
    hub.broken_files = set()
    (again,) = ask(tmp_path, {"name": "org/tiny"}, HF_ENDPOINT=hub.url)
    assert "'org/tiny': download from the hub failed" in broken["error"]
    assert "no weights" in offline["error"]
    assert again["source"]["fingerprint"] == fingerprint(model)


def test_offline_with_an_empty_cache_says_both(tmp_path: Path) -> None:
    call = {"name": "models/foo"}
    answers = ask(tmp_path, call, HF_HUB_OFFLINE="1") + ask(
        tmp_path, call, HF_ENDPOINT=closed_port()
    )
    for answer in answers:
        assert answer["type"] == "ModelLoadError"
        assert "model 'models/foo': not in the cache of node" in answer["error"]
        assert "the hub could not be reached" in answer["error"]
        assert "there is no folder of that name" in answer["error"]


def test_hub_refusals_say_which_they_are(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", model)
    answers = ask(
        tmp_path,
        {"name": "models/foo"},
        {"name": "org/tiny", "revision": "v9"},
        {"name": "org/gated"},
        {"name": "a/b/c"},
        HF_ENDPOINT=hub.url,
    )
    missing, revision, gated, invalid = (answer["error"] for answer in answers)
    assert "'models/foo': there is no such folder, and the hub has no such model" in missing
    assert "'org/tiny': the hub has no revision 'v9'" in revision
    assert "'org/gated': gated on the hub; accept its terms" in gated
    assert "'a/b/c': neither an existing folder nor a valid hub id" in invalid


@pytest.mark.parametrize("kept_in", ["environment", "file"])
def test_hub_token_is_sent_but_in_no_message(hub: FakeHub, tmp_path: Path, kept_in: str) -> None:
    env = {"HF_ENDPOINT": hub.url}
    if kept_in == "environment":
        token = env["HF_TOKEN"] = "token-of-a-private-hub"
    else:
        token = "hf_" + "0123456789" * 3
        (tmp_path / "token").write_text(token)
        env["HF_TOKEN_PATH"] = str(tmp_path / "token")
    (answer,) = ask(tmp_path, {"name": "org/down"}, **env)
    assert hub.authorizations == {f"Bearer {token}"}
    assert "got Bearer ***" in answer["error"]
    assert token not in json.dumps(answer)


def test_import_brings_no_heavy_library() -> None:
    code = "import sys, sparkinfer.models.sources; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"pyspark", "torch", "transformers", "huggingface_hub", "mlflow", "fsspec"}
    assert not heavy & set(run.stdout.split())


# --- MLflow --------------------------------------------------------------------------------


def test_absent_mlflow_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(EngineUnavailableError, match="pip install mlflow"):
        resolve("models:/tiny/1", loading=SAFE)


# MLflow warns about itself: its use of SQLAlchemy, and stages, which are deprecated.
of_mlflow = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A registry in SQLite: `plain` and `logged` hold one tiny BERT, two others hold none."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("torch", reason="mlflow.transformers needs torch")
    root = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    experiment = mlflow.create_experiment("tiny", artifact_location=f"file://{root}/artifacts")
    components = save_bert(root / "saved")
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifacts(str(root / "saved"), "plain")
        mlflow.log_text("hello", "useless/hello.txt")
        mlflow.log_text("flavors: {}", "reference/MLmodel")
        mlflow.log_text("flavors: {transformers: {}}", "no_weights/MLmodel")
        mlflow.transformers.log_model(
            components, name="logged", task="text-classification", pip_requirements=["transformers"]
        )
    mlflow.register_model(f"runs:/{run.info.run_id}/logged", "logged")
    client = mlflow.MlflowClient()
    for name in ("plain", "useless", "reference", "no_weights"):
        client.create_registered_model(name)
        client.create_model_version(name, f"{run.info.artifact_uri}/{name}", run.info.run_id)
    client.set_registered_model_alias("plain", "champion", "1")
    client.transition_model_version_stage("plain", "1", "Production")
    yield {"saved": root / "saved", "run_id": run.info.run_id, "root": root}
    mlflow.set_tracking_uri(before)


def save_bert(folder: Path) -> dict[str, Any]:
    """Saves a tiny seeded BERT and its tokenizer; returns both."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=8, intermediate_size=8, **shape)
    model = transformers.BertForSequenceClassification(config)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    tokenizer = transformers.BertTokenizer({word: number for number, word in enumerate(words)})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"model": model, "tokenizer": tokenizer}


@of_mlflow
@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("models:/plain/1", "models:/plain/1"),
        ("models:/plain@champion", "models:/plain/1"),
        ("models:/plain/Production", "models:/plain/1"),
        ("models:/plain/latest", "models:/plain/1"),
        ("runs:/RUN/plain", "runs:/RUN/plain"),
    ],
)
def test_mlflow_plain_artifacts_are_used_as_they_are_and_pinned_to_a_version(
    registry: dict[str, Any], caching: LoadingConfig, uri: str, location: str
) -> None:
    uri, location = (text.replace("RUN", registry["run_id"]) for text in (uri, location))
    source = resolve(uri, loading=caching)
    assert (source.kind, source.name_or_path, source.location) == ("mlflow", uri, location)
    assert source.fingerprint == fingerprint(registry["saved"])


@of_mlflow
@pytest.mark.parametrize("uri", ["models:/logged/1", "runs:/RUN/logged"])
def test_mlflow_transformers_model_becomes_one_flat_folder_that_loads(
    registry: dict[str, Any], caching: LoadingConfig, uri: str
) -> None:
    import transformers

    source = resolve(uri.replace("RUN", registry["run_id"]), loading=caching)
    folder = stage(source, caching)
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (registry["saved"] / weights).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert tokenizer("good film")["input_ids"] == [2, 5, 7, 3]
    assert model.config.vocab_size == 8


@of_mlflow
def test_mlflow_keeps_its_own_files(registry: dict[str, Any], caching: LoadingConfig) -> None:
    before = sorted(registry["root"].rglob("*.safetensors"))
    for name in ("plain", "logged"):
        resolve(f"models:/{name}/1", loading=caching)
    assert sorted(registry["root"].rglob("*.safetensors")) == before


@of_mlflow
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("models:/absent/1", "'models:/absent/1'.*not found"),
        ("models:/plain/7", "'models:/plain/7'.*not found"),
        ("models:/plain@nobody", "'models:/plain@nobody'.*MLflow has no such model or version"),
        ("models:/plain/Staging", "'models:/plain/Staging'.*MLflow has no such model or version"),
        ("runs:/absent/plain", "'runs:/absent/plain'.*not found"),
        ("runs:/RUN/absent", "absent'.*download from MLflow failed"),
        ("models:/useless/1", "'models:/useless/1': no config.json .*found: hello.txt"),
        ("models:/no_weights/1", "'models:/no_weights/1': an MLflow model without model/config.js"),
        ("models:/reference/1", "of the flavours none, expected transformers"),
    ],
)
def test_mlflow_model_that_is_not_there_is_an_error(
    registry: dict[str, Any], caching: LoadingConfig, uri: str, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        resolve(uri.replace("RUN", registry["run_id"]), loading=caching)


@of_mlflow
def test_a_registered_model_without_a_version_is_refused_with_those_that_there_are(
    registry: dict[str, Any], caching: LoadingConfig
) -> None:
    with pytest.raises(ConfigError, match=r"add /VERSION or @ALIAS, .* it has version 1$"):
        resolve("models:/plain", loading=caching)


def write_mlflow_folder(folder: Path, flavours: str = "{transformers: {}}") -> Path:
    """Writes what `mlflow.transformers` logs: model and tokenizer in folders of their own."""
    write_model(folder / "model")
    tokenizer = folder / "components" / "tokenizer"
    tokenizer.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / "model" / name).rename(tokenizer / name)
    (folder / "MLmodel").write_text(f"flavors: {flavours}\n")
    return folder


def test_mlflow_model_in_a_folder_becomes_one_flat_folder_without_mlflow(
    tmp_path: Path, caching: LoadingConfig, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    logged = write_mlflow_folder(tmp_path / "logged")
    source = resolve(str(logged), loading=caching)
    assert source.fingerprint == fingerprint(model)
    elsewhere = LoadingConfig(cache_dir=str(tmp_path / "another node"))
    assert sorted(path.name for path in stage(source, elsewhere).iterdir()) == sorted(
        path.name for path in model.iterdir()
    )
    assert (logged / "model" / "config.json").is_file()
    shutil.rmtree(logged)
    with pytest.raises(ModelLoadError, match="logged' is not on node"):
        stage(source, LoadingConfig(cache_dir=str(tmp_path / "third node")))


@pytest.mark.parametrize(
    ("flavours", "reason"),
    [
        ("{sklearn: {}, python_function: {}}", "flavours sklearn, python_function, expected trans"),
        ("7", "MLmodel cannot be read"),
    ],
)
def test_mlflow_folder_of_another_flavour_is_refused(
    tmp_path: Path, caching: LoadingConfig, flavours: str, reason: str
) -> None:
    logged = write_mlflow_folder(tmp_path / "logged", flavours)
    with pytest.raises(ModelLoadError, match=reason):
        resolve(str(logged), loading=caching)


@of_mlflow
def test_mlflow_model_is_staged_by_a_process_that_was_told_no_tracking_uri(
    registry: dict[str, Any], caching: LoadingConfig, tmp_path: Path
) -> None:
    driver = LoadingConfig(cache_dir=str(tmp_path / "driver"))
    uris = (f"runs:/{registry['run_id']}/logged", "models:/plain/1")
    sources = [resolve(uri, loading=driver) for uri in uris]
    loading = {"cache_dir": caching.cache_dir}
    answers = ask(tmp_path, *({"source": vars(source), "loading": loading} for source in sources))
    expected = [str(cache_folder(caching) / source.fingerprint) for source in sources]
    assert [answer["folder"] for answer in answers] == expected


@of_mlflow
def test_mlflow_model_in_a_shared_cache_folder_needs_no_mlflow_and_no_lock_on_the_workers(
    registry: dict[str, Any], caching: LoadingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve("models:/plain/1", loading=caching)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for lock in cache_folder(caching).glob("*.lock"):
        lock.unlink()
    assert stage(source, caching).name == source.fingerprint
    names = {path.name for path in cache_folder(caching).iterdir()}
    assert names == {source.fingerprint, digests.FOLDER}
