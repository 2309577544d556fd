"""The Hugging Face hub as a small HTTP server on 127.0.0.1, and processes that ask it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


class FakeHub(ThreadingHTTPServer):
    """The part of the hub's HTTP interface that downloads need, over folders."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHubHandler)
        self.commits: dict[tuple[str, str], Path] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.fetched: Counter[str] = Counter()
        self.requests = 0
        self.authorizations: set[str | None] = set()
        self.broken_files: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, folder: Path, commit: str = COMMIT, ref: str = "main") -> None:
        self.commits[repo, commit] = folder
        self.refs[repo, ref] = self.refs[repo, commit] = commit


ALWAYS_ANSWERED = {"private": False, "downloads": 0, "likes": 0, "tags": []}
"""What the first clients do not do without."""


class FakeHubHandler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.authorizations.add(self.headers["Authorization"])
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            self.answer_api(path.removeprefix("api/models/"))
        else:
            repo, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            self.answer_file(repo, revision, name)

    def answer_api(self, path: str) -> None:
        verb = next((verb for verb in ("revision", "tree") if f"/{verb}/" in path), None)
        repo, _, revision = path.partition(f"/{verb}/") if verb else (path, "", "main")
        if repo == "org/gated":
            return self.send(403, error="GatedRepo")
        if repo == "org/down":
            return self.send(500, message=f"got {self.headers['Authorization']}")
        if not any(known == repo for known, _ in self.server.commits):
            return self.send(404, error="RepoNotFound")
        commit = self.server.refs.get((repo, revision))
        if commit is None:
            return self.send(404, error="RevisionNotFound")
        folder = self.server.commits[repo, commit]
        files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
        siblings = [{"rfilename": name} for name in files]
        tree = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": etag(file)}
            for name, file in files.items()
        ]
        info = {"id": repo, "sha": commit, "siblings": siblings, **ALWAYS_ANSWERED}
        body = tree if verb == "tree" else info
        return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def answer_file(self, repo: str, revision: str, name: str) -> None:
        commit = self.server.refs.get((repo, revision), "")
        file = self.server.commits.get((repo, commit), Path("/none")) / name
        if not file.is_file():
            return self.send(404, headers={"X-Repo-Commit": commit}, error="EntryNotFound")
        if self.command == "GET":
            self.server.fetched[name] += 1
            if name in self.server.broken_files:
                return self.send(403)
        headers = {"ETag": f'"{etag(file)}"', "X-Repo-Commit": commit}
        return self.send(200, file.read_bytes(), headers)

    def send(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        error: str = "",
        message: str = "",
    ) -> None:
        self.send_response(status)
        extra = {"X-Error-Code": error, "X-Error-Message": message}
        for key, value in {**(headers or {}), **extra}.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def etag(file: Path) -> str:
    # Git's blob id in the real hub; any text that follows the content will do.
    return hashlib.sha1(file.read_bytes()).hexdigest()


ASK = """
    import json, sys, traceback
    from sparkinfer.option_groups import LoadingConfig
    from sparkinfer.exceptions import SparkInferError
    from sparkinfer.models.sources import ModelSource, resolve, stage
    for call in json.loads(sys.argv[1]):
        loading = LoadingConfig(**call.pop("loading"))
        answer = {}
        try:
            if "source" in call:
                source = ModelSource(**call["source"])
            else:
                source = resolve(call.pop("name"), loading=loading, **call)
            answer["source"] = vars(source)
            folder = stage(source, loading)
            answer["folder"] = str(folder)
            found = (path for path in folder.rglob("*") if path.is_file())
            answer["files"] = sorted(str(path.relative_to(folder)) for path in found)
        except SparkInferError as error:
            answer = {"error": error.message, "type": type(error).__name__,
                      "traceback": traceback.format_exc()}
        print(json.dumps(answer))
"""


def start(tmp_path: Path, *calls: dict[str, Any], **env: str) -> subprocess.Popen[str]:
    """Starts a new process, since the hub's library reads its settings at import."""
    tmp_path.mkdir(exist_ok=True)
    calls_json = json.dumps([{"loading": {}, **call} for call in calls])
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    home = {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf")}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ASK), calls_json],
        cwd=tmp_path,
        env={**kept, **home, **quiet, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def ask(tmp_path: Path, *calls: dict[str, Any], **env: str) -> list[dict[str, Any]]:
    return finish(start(tmp_path, *calls, **env))


def closed_port() -> str:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}"
