"""Turns a hub id, folder, MLflow URI or remote folder into local files, the same on every node.

The driver calls `resolve`: it finds the model, fetches it, checks that it can be loaded under the
current settings, and computes a fingerprint of its files. Each worker calls `stage`: it makes the
same files available on its node, fetched at most once per node, and rejects any others.

Folders are used in place. Hub models go through the hub's own cache. MLflow models, also those in
a folder, and remote models are kept in the cache folder under their fingerprint, so a cache folder
that every node sees is filled once, by the driver.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sparkinfer.exceptions import (
    ConfigError,
    ModelLoadError,
)
from sparkinfer.models.digests import FOLDER as DIGESTS
from sparkinfer.models.fetching import local_path, node_name, translated
from sparkinfer.models.files import Listing, fingerprint, look_in, names_in, select_files
from sparkinfer.models.hub import cached_snapshot, hub_snapshot
from sparkinfer.option_groups import LoadingConfig
from sparkinfer.redaction import without_secrets
from sparkinfer.tracking.calls import try_steps
from sparkinfer.tracking.client import import_mlflow
from sparkinfer.workers.steps import step

SourceKind = Literal["folder", "hub", "mlflow", "mlflow_folder", "remote"]


@dataclass(frozen=True)
class ModelSource:
    """A model pinned to exact files: what a worker needs to find the same model as the driver.

    Attributes:
        kind: what `name_or_path` turned out to be.
        name_or_path: the model as the user gave it.
        revision: commit hash of a hub model, else None.
        fingerprint: sha256 (hex) over the files that matter.
        location: absolute folder, hub id, MLflow URI with its version, or URL.
        mlflow_uris: tracking and registry URI of the driver, for MLflow models.
        files: patterns of files that matter beside those that transformers reads.
    """

    kind: SourceKind
    name_or_path: str
    revision: str | None
    fingerprint: str
    location: str
    mlflow_uris: tuple[str, str] | None = field(default=None, repr=False)
    files: tuple[str, ...] = ()


def resolve(
    name_or_path: str,
    *,
    revision: str | None = None,
    loading: LoadingConfig,
    files: Sequence[str] = (),
) -> ModelSource:
    """Returns the model pinned to exact files, after fetching and checking them.

    Cost: each file that matters is read once; an MLflow or remote model is downloaded each time,
    since only its content shows whether it changed. Configuration and file names are checked before
    weights are downloaded (not for MLflow, which only provides whole models).

    Args:
        name_or_path: hub id, folder, `dbfs:/` path, `models:/` or `runs:/` URI, or a URL that
            fsspec supports.
        revision: branch, tag or commit of a hub model.
        loading: what is allowed, and where fetched files are kept.
        files: patterns of files that matter beside those that transformers reads, such as
            `modules.json` or `*/config.json`; a `*` matches no slash.

    Raises:
        ModelLoadError: the model is missing, incomplete, or not allowed by `loading`.
        EngineUnavailableError: the package that fetches this kind of model is not installed.
        ConfigError: `revision` was given for something other than a hub model.
    """
    kind, location = _locate(name_or_path)
    shown = f"model {without_secrets(name_or_path)!r}"
    if revision is not None and kind != "hub":
        raise ConfigError(
            f"revision={revision!r} with {shown}: only hub models have revisions; drop it"
        )
    if kind not in ("folder", "hub"):
        location, uris = _pin_mlflow(location, shown) if kind == "mlflow" else (location, None)
        draft = ModelSource(kind, name_or_path, None, "", location, uris, tuple(files))
        return replace(draft, fingerprint=_fetch_into_cache(draft, shown, loading).name)
    folder, commit = Path(location), None
    if kind == "hub":
        folder = hub_snapshot(location, revision, shown, loading, files)
        commit = folder.name
    kept = cache_folder(loading) / DIGESTS if kind == "hub" else None
    found = fingerprint(folder, shown, loading, files, kept)
    return ModelSource(kind, name_or_path, commit, found, location, files=tuple(files))


def stage(source: ModelSource, loading: LoadingConfig) -> Path:
    """Returns a local folder in which the files that matter are those that the driver saw.

    Fetches what is missing, once per node however many processes ask. Cost: each file that matters
    is read to verify the fingerprint, once per process, or once per node if it is one of a cache.

    Raises:
        ModelLoadError: the files are missing on this node or differ from the driver's.
        EngineUnavailableError: the package that fetches this kind of model is not installed.
    """
    shown = f"model {without_secrets(source.name_or_path)!r}"
    kept = None if source.kind == "folder" else cache_folder(loading) / DIGESTS
    if source.kind == "folder":
        folder = Path(source.location)
        if not folder.is_dir():
            raise ModelLoadError(
                f"{shown}: folder {source.location!r} is not on node {node_name()}, but it is on "
                "the driver; put the model on storage that every node sees"
            )
    elif source.kind == "hub":
        folder = _staged_snapshot(source, shown, loading)
    else:
        folder = cache_folder(loading) / source.fingerprint
        if not folder.is_dir():
            folder = _fetch_into_cache(source, shown, loading)
    found = fingerprint(folder, shown, loading, source.files, kept)
    if found != source.fingerprint:
        raise ModelLoadError(
            f"{shown}: the files in {str(folder)!r} on node {node_name()} have the fingerprint "
            f"{found[:12]}, expected {source.fingerprint[:12]} as on the driver; {_remedy(source)}"
        )
    return folder


def cache_folder(loading: LoadingConfig) -> Path:
    """Returns where fetched models are kept: the option, `SPARKINFER_CACHE` or the user's cache."""
    given = loading.cache_dir or os.environ.get("SPARKINFER_CACHE")
    if given:
        return local_path(given)
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return local_path(user_cache) / "sparkinfer" / "models"


def _locate(name: str) -> tuple[SourceKind, str]:
    """Returns the kind of source that a name refers to, and where it is."""
    if name.startswith(("models:/", "runs:/")):
        return "mlflow", name
    is_local_url = name.startswith(("file:", "dbfs:/"))
    if not is_local_url and re.match(r"[A-Za-z][\w+.:-]*://", name):
        return "remote", name.rstrip("/")
    looks_like_path = name in (".", "..", "~") or name.startswith(("/", "./", "../", "~"))
    if is_local_url or looks_like_path or Path(name).exists():
        folder = local_path(name)
        is_mlflow = (folder / "MLmodel").is_file() and not (folder / "config.json").is_file()
        return ("mlflow_folder" if is_mlflow else "folder"), str(folder)
    return "hub", name


def _staged_snapshot(source: ModelSource, shown: str, loading: LoadingConfig) -> Path:
    """Returns the snapshot folder on this node; asks the hub only if the cache does not suffice."""
    cached = cached_snapshot(source.location, source.revision, loading)
    kept = cache_folder(loading) / DIGESTS
    try:
        if cached and fingerprint(cached, shown, loading, source.files, kept) == source.fingerprint:
            return cached
    except ModelLoadError:
        pass  # A partial model, from an interrupted download.
    return hub_snapshot(source.location, source.revision, shown, loading, source.files)


def _pin_mlflow(uri: str, shown: str) -> tuple[str, tuple[str, str]]:
    """Returns the URI with alias or stage replaced by the version, and the driver's MLflow URIs."""
    mlflow = import_mlflow(shown)
    if uri.startswith("models:/"):
        _refuse_without_version(mlflow, uri, shown)
        with translated(shown, "MLflow has no such model or version"):
            models = importlib.import_module("mlflow.store.artifact.utils.models")
            found = models.get_model_name_and_version(mlflow.MlflowClient(), uri)
        uri = "models:/" + "/".join(str(part) for part in found)
    return uri, (mlflow.get_tracking_uri(), mlflow.get_registry_uri())


def _refuse_without_version(mlflow: Any, uri: str, shown: str) -> None:
    """Raises ConfigError for a registered model of which it is not said which version."""
    name = uri.removeprefix("models:/").strip("/")
    if "/" in name or "@" in name or re.fullmatch(r"m-[0-9a-f]{32}", name):  # the last: an id
        return
    versions: list[int] = []

    def look() -> None:
        found = mlflow.MlflowClient().search_model_versions(f"name='{name}'")
        versions.extend(sorted(int(one.version) for one in found))

    try_steps([("versions", look)])
    known = f"; it has version {', '.join(map(str, versions[-10:]))}" if versions else ""
    raise ConfigError(
        f"{shown}: which version of it is not said; add /VERSION or @ALIAS, as in "
        f"models:/{name}/{versions[-1] if versions else 1}{known}"
    )


def _fetch_mlflow(source: ModelSource, into: Path, shown: str, loading: LoadingConfig) -> None:
    mlflow = import_mlflow(shown)
    tracking, registry = source.mlflow_uris or (None, None)
    # Passing URIs is not enough: MLflow looks models up in the process-wide registry.
    if mlflow.get_tracking_uri() != tracking:
        mlflow.set_tracking_uri(tracking)
    if mlflow.get_registry_uri() != registry:
        mlflow.set_registry_uri(registry)
    download = into.with_name("download")
    with translated(shown, "download from MLflow failed"):
        download_artifacts = mlflow.artifacts.download_artifacts
        root = Path(download_artifacts(artifact_uri=source.location, dst_path=str(download)))
    _take_mlflow_files(source, root, into, shown, loading, shutil.move)


def _copy_mlflow_folder(
    source: ModelSource, into: Path, shown: str, loading: LoadingConfig
) -> None:
    root = Path(source.location)
    if not root.is_dir():
        raise ModelLoadError(
            f"{shown}: folder {source.location!r} is not on node {node_name()}, but it is on the "
            "driver; put the model on storage that every node sees"
        )
    _take_mlflow_files(source, root, into, shown, loading, shutil.copyfile)


def _take_mlflow_files(
    source: ModelSource,
    root: Path,
    into: Path,
    shown: str,
    loading: LoadingConfig,
    take: Callable[[Path, Path], Any],
) -> None:
    """Moves or copies the files that matter of a logged model into one folder."""
    paths = _mlflow_files(root, shown, source.files)
    listing = Listing(shown, frozenset(paths), lambda name: paths[name].read_bytes())
    for name in select_files(listing, loading, source.files):
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        take(paths[name], into / name)


def _mlflow_files(root: Path, shown: str, files: Sequence[str]) -> dict[str, Path]:
    """Returns the files of a logged model by the names they get in one folder.

    Source: `mlflow.transformers` puts the model in `model/` and its tokenizer in
    `components/tokenizer/`; plain artifacts are a folder as written by `save_pretrained`.
    """
    folders = [root]
    if (root / "MLmodel").is_file() and not (root / "config.json").is_file():
        _refuse_other_flavours(root / "MLmodel", shown)
        folders = [root / "components" / "tokenizer", root / "model"]
        if not (root / "model" / "config.json").is_file():
            raise ModelLoadError(
                f"{shown}: an MLflow model without model/config.json, expected one logged by "
                "`mlflow.transformers` with its weights, or plain artifacts with config.json; "
                "log it that way, or give the hub id or folder it refers to"
            )
    # The model's folder last: its config.json is the one that counts.
    present = [folder for folder in folders if folder.is_dir()]
    return {
        name: folder / name
        for folder in present
        for name in names_in(look_in(folder, shown), files)
    }


def _refuse_other_flavours(file: Path, shown: str) -> None:
    """Raises unless an MLmodel file names a transformers model."""
    import yaml

    try:
        flavours = list((yaml.safe_load(file.read_text()) or {})["flavors"])
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise ModelLoadError(
            f"{shown}: MLmodel cannot be read ({type(error).__name__}); log the model again"
        ) from None
    if "transformers" not in flavours:
        raise ModelLoadError(
            f"{shown}: an MLflow model of the flavours {', '.join(map(str, flavours)) or 'none'}, "
            "expected transformers; log it with `mlflow.transformers`, or give the hub id or "
            "folder of the model that it wraps"
        )


def _fetch_remote(source: ModelSource, into: Path, shown: str, loading: LoadingConfig) -> None:
    from fsspec.core import url_to_fs

    with translated(shown, "the remote folder could not be read"):
        fs, root = url_to_fs(source.location)
        # An earlier run in this process may have listed the folder before it changed.
        fs.invalidate_cache()
        paths = _remote_files(fs, root, source.files)
        listing = Listing(shown, frozenset(paths), lambda name: bytes(fs.cat_file(paths[name])))
        names = select_files(listing, loading, source.files)
        for folder in {(into / name).parent for name in names}:
            folder.mkdir(parents=True, exist_ok=True)
        fs.get([paths[name] for name in names], [str(into / name) for name in names])


def _remote_files(fs: Any, root: str, files: Sequence[str]) -> dict[str, str]:
    """Returns where the files of a remote model are, by their paths in its folder."""
    paths: dict[str, str] = {}

    def look(at: str) -> tuple[list[str], list[str]]:
        found: dict[str, list[str]] = {"file": [], "directory": []}
        for entry in fs.ls(f"{root}/{at}".rstrip("/"), detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[-1]
            paths[at + name] = entry["name"]
            found.setdefault(entry["type"], []).append(name)
        return found["file"], found["directory"]

    return {name: paths[name] for name in names_in(look, files)}


_FETCHERS = {
    "mlflow": _fetch_mlflow,
    "mlflow_folder": _copy_mlflow_folder,
    "remote": _fetch_remote,
}


def _fetch_into_cache(source: ModelSource, shown: str, loading: LoadingConfig) -> Path:
    """Returns the folder of the fetched model, named by its fingerprint; one process fetches."""
    from filelock import FileLock

    cache = cache_folder(loading)
    key = hashlib.sha256(source.location.encode()).hexdigest()[:16]
    work = cache / f"{key}.part"
    fetch = _FETCHERS[source.kind]
    lock = cache / f"{key}.lock"
    with (
        _writable(cache, shown),
        step(f"fetching {shown} on {node_name()}, or another process there that has {lock}", work),
        FileLock(lock),
    ):
        if source.fingerprint and (cache / source.fingerprint).is_dir():
            return cache / source.fingerprint
        # We hold the lock, so anything here is left over from a process that was killed.
        shutil.rmtree(work, ignore_errors=True)
        try:
            into = work / "model"
            into.mkdir(parents=True)
            fetch(source, into, shown, loading)
            return _publish(into, cache / fingerprint(into, shown, loading, source.files))
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _publish(folder: Path, target: Path) -> Path:
    try:
        folder.replace(target)
    except OSError:
        # The same files from another location, published a moment ago, will do.
        if not target.is_dir():
            raise
    return target


@contextmanager
def _writable(cache: Path, shown: str) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ModelLoadError(
            f"{shown}: cache folder {str(cache)!r} on node {node_name()} cannot be used "
            f"({error.strerror or error}); name another with --set loading.cache_dir=..."
        ) from None


def _remedy(source: ModelSource) -> str:
    if source.kind == "folder":
        return "put the model on storage that every node sees"
    if source.kind == "hub":
        return "remove it from the cache of that node"
    return "if it has changed since the run began, run again; otherwise remove that folder"
