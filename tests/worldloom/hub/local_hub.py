"""A model hub in this process: the part of the hub's API that ``huggingface_hub`` calls to make a
repository, push to it and fetch from it. Files live in memory; large ones come by LFS.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writer"
LFS_BYTES = 20_000
"""Files from this size on are sent by LFS."""


@dataclass
class Repo:
    """One repository: commit -> path -> content."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((pair for pair in self.commits if pair[0] == revision), None)


@dataclass
class LocalHub:
    """What the server holds, and what it was asked.

    Attributes:
        url: For ``HF_ENDPOINT``.
        asked: Method and path of every request.
        fails_with: Status of every answer; 0 answers.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    fails_with: int = 0

    def commit(self, name: str, files: Mapping[str, bytes | None]) -> str:
        repo = self.repos.setdefault(name, Repo(private=False))
        before = repo.commits[-1][1] if repo.commits else {}
        changed = {**before, **files}
        after = {path: data for path, data in changed.items() if data is not None}
        text = repr(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in after.items()))
        sha = hashlib.sha1(f"{len(repo.commits)} {text}".encode()).hexdigest()
        repo.commits.append((sha, after))
        return sha


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def do_HEAD(self) -> None:
        self._resolve(unquote(urlsplit(self.path).path), sends=False)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            self._json(200, {"name": "ada", "type": "user"})
        elif parts[:2] == ["api", "models"]:
            self._model("/".join(parts[2:4]), parts[4:])
        else:
            self._resolve(path, sends=True)

    def do_POST(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        if self._refused(is_write=True):
            return
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "ada"
            name = f"{owner}/{asked['name']}"
            known = name in self.hub.repos
            self.hub.repos.setdefault(name, Repo(asked.get("visibility") == "private"))
            if not self.hub.repos[name].commits:
                self.hub.commit(name, {".gitattributes": b""})
            self._json(409 if known else 200, {"url": f"{self.hub.url}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LFS_BYTES else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json(200, {"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": wanted["oid"],
                    "size": wanted["size"],
                    "actions": {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}"}},
                }
                for wanted in json.loads(body)["objects"]
            ]
            self._json(200, {"transfer": "basic", "objects": objects})
        elif parts[4:5] == ["commit"]:
            self._commit("/".join(parts[2:4]), body)
        else:
            self._json(404, {"error": path})

    def do_PUT(self) -> None:
        data = self._body()
        name = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == name
        self.hub.objects[name] = data
        self._json(200, {})

    def _commit(self, name: str, body: bytes) -> None:
        files: dict[str, bytes | None] = {}
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files[value["path"]] = None
        sha = self.hub.commit(name, files)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        self._json(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _model(self, name: str, rest: list[str]) -> None:
        if self._refused(is_write=False):
            return
        repo = self.hub.repos.get(name)
        if repo is None:
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        revision = rest[1] if len(rest) > 1 else "main"
        found = repo.files(revision)
        if found is None:
            code = {"X-Error-Code": "RevisionNotFound"}
            self._json(404, {"error": "Invalid rev id"}, code)
            return
        sha, files = found
        if rest[:1] == ["tree"]:
            self._json(200, [self._entry(path, data) for path, data in sorted(files.items())])
            return
        names = [{"rfilename": path} for path in sorted(files)]
        facts = {"id": name, "modelId": name, "sha": sha, "private": repo.private}
        self._json(200, {**facts, "siblings": names, "tags": [], "downloads": 0, "likes": 0})

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "type": "file",
            "oid": hashlib.sha1(data).hexdigest(),
            "size": len(data),
            "path": path,
        }
        if len(data) >= LFS_BYTES:
            sha = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
        return entry

    def _resolve(self, path: str, *, sends: bool) -> None:
        if self._refused(is_write=False):
            return
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        repo = self.hub.repos.get(name)
        found = None if repo is None else repo.files(revision)
        if found is None or file not in found[1]:
            self._json(404, {"error": path}, {"X-Error-Code": "EntryNotFound"})
            return
        data = found[1][file]
        large = len(data) >= LFS_BYTES
        etag = (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", found[0])
        self.end_headers()
        if sends:
            self.wfile.write(data)

    def _refused(self, *, is_write: bool) -> bool:
        self.hub.asked.append((self.command, self.path))
        if self.hub.fails_with:
            self._json(self.hub.fails_with, {"error": "no"})
            return True
        if is_write and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid credentials in Authorization header"})
            return True
        return False

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


@contextlib.contextmanager
def serving() -> Iterator[LocalHub]:
    """A hub on a free port of the loopback."""
    hub = LocalHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
