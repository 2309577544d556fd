"""Models of the Hugging Face hub, through the hub's own cache."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.fetching import local_path, node_name, reason_of, translated
from sparkinfer.models.files import Listing, matches, select_files
from sparkinfer.option_groups import LoadingConfig
from sparkinfer.workers.steps import step

_HUB_TIMEOUT_S = 20.0


def hub_snapshot(
    repo: str,
    revision: str | None,
    shown: str,
    loading: LoadingConfig,
    files: Sequence[str] = (),
) -> Path:
    """Returns the snapshot folder of a hub model, downloaded or, without a connection, cached.

    Args:
        repo: id of the model.
        revision: branch, tag or commit.
        shown: the model, for messages.
        loading: what is allowed, and where the cache is.
        files: patterns of files that matter beside those that transformers reads.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_HUB_TIMEOUT_S)
    # The hub's HTTP library, and so what a lost connection raises, differs by version.
    except Exception as error:
        if refusal := _hub_refusal(error, revision, shown):
            raise ModelLoadError(refusal) from None
        if cached := cached_snapshot(repo, revision, loading):
            _refuse_unknown(cached, repo, shown, loading, files)
            return cached
        raise ModelLoadError(
            f"{shown}: not in the cache of node {node_name()}, the hub could not be reached "
            f"({reason_of(error)}), and there is no folder of that name; connect, fill the cache, "
            "or give a folder"
        ) from None
    paths = (file.rfilename for file in info.siblings or ())
    names = frozenset(path for path in paths if "/" not in path or matches(path, files))
    with translated(shown, "download from the hub failed"):
        folder = _download(repo, revision, str(info.sha), names, shown, loading, files)
        _note_absent(repo, folder.name, _literal(files) - names, loading)
        return folder


def _download(
    repo: str,
    revision: str | None,
    commit: str,
    names: frozenset[str],
    shown: str,
    loading: LoadingConfig,
    files: Sequence[str],
) -> Path:
    """Returns the snapshot folder with the files that matter, the weights fetched last."""
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    cache_dir = _hub_cache(loading)
    fills = Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"

    def read(name: str) -> bytes:
        return Path(hf_hub_download(repo, name, revision=commit, cache_dir=cache_dir)).read_bytes()

    def fetch(names: list[str], at: str | None) -> Path:
        patterns = [glob.escape(name) for name in names]
        with step(f"fetching {shown} on {node_name()}", fills):
            found = snapshot_download(
                repo, revision=at, cache_dir=cache_dir, allow_patterns=patterns
            )
        return Path(found)

    chosen = select_files(Listing(shown, names, read), loading, files)
    weights = [name for name in chosen if name.endswith((".safetensors", ".bin"))]
    # Weights last, so that an interrupted download never looks like a model with half a tokenizer;
    # the revision as given, so that the cache can resolve it without a connection.
    fetched = fetch([name for name in chosen if name not in weights], revision)
    return fetch(weights, fetched.name)


def _literal(patterns: Iterable[str]) -> set[str]:
    """Returns the patterns that name one file."""
    return {pattern for pattern in patterns if glob.escape(pattern) == pattern}


def _note_absent(repo: str, commit: str, names: set[str], loading: LoadingConfig) -> None:
    """Has the hub's cache know that a model does not have these files."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError

    for name in sorted(names):
        try:
            hf_hub_download(repo, name, revision=commit, cache_dir=_hub_cache(loading))
        except EntryNotFoundError:
            continue  # which the library has noted


def _refuse_unknown(
    folder: Path, repo: str, shown: str, loading: LoadingConfig, files: Sequence[str]
) -> None:
    """Raises ModelLoadError where a cached model may have files that were never asked for.

    Other programs fill the cache with what they need, and a model without these files means another
    one to the task.
    """
    from huggingface_hub import try_to_load_from_cache

    cache_dir = _hub_cache(loading)
    for name in sorted(_literal(files)):
        if try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=folder.name) is None:
            raise ModelLoadError(
                f"{shown}: the hub could not be reached, and its cache on node {node_name()} does "
                f"not say whether the model has the file {name}; connect once, or if the cache "
                f"holds the whole model give its folder, {str(folder)!r}"
            )


def _hub_cache(loading: LoadingConfig) -> str | None:
    return str(local_path(loading.cache_dir)) if loading.cache_dir else None


def cached_snapshot(repo: str, revision: str | None, loading: LoadingConfig) -> Path | None:
    """Returns the snapshot folder in the hub's cache on this node, None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    cache_dir = _hub_cache(loading)
    found = try_to_load_from_cache(repo, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _hub_refusal(error: Exception, revision: str | None, shown: str) -> str | None:
    """Returns what the hub answered, or None if it gave no answer about the model."""
    from huggingface_hub import utils as hub  # exports the errors in old and new versions

    if isinstance(error, hub.HFValidationError):
        return f"{shown}: neither an existing folder nor a valid hub id; correct the path or id"
    if isinstance(error, hub.GatedRepoError):
        return f"{shown}: gated on the hub; accept its terms there and set HF_TOKEN on every node"
    if isinstance(error, hub.RepositoryNotFoundError):
        return (
            f"{shown}: there is no such folder, and the hub has no such model (or it is private); "
            "correct the path or id, or set HF_TOKEN"
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return f"{shown}: the hub has no revision {revision!r} of it; give a branch, tag or commit"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{shown}: the hub refused access (HTTP {status}); check HF_TOKEN on every node"
    return None
