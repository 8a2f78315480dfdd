"""A model hub on localhost: the few endpoints `huggingface_hub` really calls, and the ways they fail.

with FakeHub() as hub:
    hub.add("owner/name", {"model_index.json": b"{}"})
    ...  # with HF_ENDPOINT=hub.url
    hub.paths("GET")  # what was asked for
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Mode = Literal["ok", "missing", "gated", "unauthorized", "forbidden", "busy", "error", "broken files", "drop", "slow"]
TOKEN = "hf_right"


@dataclass
class Repo:
    """Files by commit, commits by branch, and how the repository (mis)behaves."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    mode: Mode = "ok"

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


class FakeHub:
    """The server, in a thread of its own."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.released = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FakeHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        self.repos.clear()
        self.requests.clear()

    def add(self, repo_id: str, files: dict[str, bytes], mode: Mode = "ok", branch: str = "main") -> str:
        """Publishes `files` as the head of `branch`; returns the commit."""
        repo = self.repos.setdefault(repo_id, Repo())
        seed = repo_id + branch + "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in files.items())
        commit = hashlib.sha1(seed.encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        repo.mode = mode
        return commit

    def add_pull_request(self, repo_id: str, number: int, author: str, files: dict[str, bytes]) -> str:
        """Publishes `files` on the branch of an open pull request; returns the commit."""
        commit = self.add(repo_id, files, branch=f"refs/pr/{number}")
        self.repos[repo_id].pulls.append(
            {
                "title": "Adding `safetensors` variant of this model",
                "num": number,
                "author": {"name": author},
                "createdAt": "2023-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": repo_id, "type": "model"},
                "isPullRequest": True,
            }
        )
        return commit

    def paths(self, method: str | None = None) -> list[str]:
        return [path for verb, path in self.requests if method in (None, verb)]


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repo = self.hub.repos.get("/".join(parts[:2]))
        rest = parts[2:]
        if repo is None or repo.mode == "missing":
            return self._refuse(404, "RepoNotFound")
        if repo.mode == "gated" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(403, "GatedRepo")
        status = {"unauthorized": 401, "forbidden": 403, "busy": 429, "error": 500}.get(repo.mode)
        if status is not None:
            # As the real hub words a wrong token; any other 401 means "not found or not yours".
            return self._refuse(status, message="Invalid credentials in Authorization header" if status == 401 else "")
        if repo.mode == "slow":
            self.hub.released.wait(1.0)
            return self._refuse(504)
        return self._api(repo, "/".join(parts[:2]), rest) if api else self._file(repo, rest)

    def _api(self, repo: Repo, repo_id: str, rest: list[str]) -> None:
        if rest == ["discussions"]:
            return self._json({"discussions": repo.pulls, "count": len(repo.pulls), "start": 0})
        revision = "/".join(rest[1:]) or "main"
        commit = repo.find(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = repo.commits[commit]
        if rest[:1] == ["tree"]:
            return self._json(
                [{"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in files.items()]
            )
        siblings = [{"rfilename": name, "size": len(data), "blobId": _etag(data)} for name, data in files.items()]
        return self._json({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings})

    def _file(self, repo: Repo, rest: list[str]) -> None:
        if rest[:1] != ["resolve"]:
            return self._refuse(404, "EntryNotFound")
        if repo.mode == "broken files":
            return self._refuse(503)
        commit, name = next(
            (
                (repo.find("/".join(rest[1:cut])), "/".join(rest[cut:]))
                for cut in (2, 4)
                if repo.find("/".join(rest[1:cut]))
            ),
            (None, ""),
        )
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        data = repo.commits[commit].get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound", commit=commit)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if repo.mode == "drop" and name.endswith(".safetensors"):
            # Half of the file at first, then nothing at all, so that no number of resumptions finishes it.
            self.wfile.write(data[: len(data) // 2] if start == 0 else b"")
            self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode())

    def _refuse(self, status: int, code: str | None = None, message: str = "", commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message or None, "X-Repo-Commit": commit}
        self._send(status, b"{}", {key: value for key, value in headers.items() if value})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
