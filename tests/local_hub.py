"""A Hugging Face Hub on this machine: enough of its HTTP interface for the real client to push to and load from.

It is a stand-in for the network, not for our code: the client library that talks to it is the one that users have.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
_USERS = {OWNER: ("alice", "write"), READER: ("alice", "read"), STRANGER: ("bob", "write")}


@dataclass
class Repo:
    """One model repository; the last of ``commits`` is what it holds now."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted((k, _sha256(v)) for k, v in self.files.items())).encode()).hexdigest()


@dataclass
class LocalHub:
    """What the server holds, and the troubles that a test can order."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # large files, by SHA-256
    uploads: list[str] = field(default_factory=list)  # of which blobs were received whole, in order
    dropped_uploads: int = 0  # so many uploads are cut off in the middle
    hold_uploads: threading.Event | None = None  # uploads wait for this
    uploading: threading.Event = field(default_factory=threading.Event)  # an upload has begun
    refused_commits: int = 0  # so many commits are answered by an error

    def environment(self, *, token: str | None, home: object) -> dict[str, str]:
        """Variables that make a client in a fresh process use this Hub; ``home`` is its cache."""
        variables = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "*", "NO_PROXY": "*"}
        return variables | ({"HF_TOKEN": token} if token else {})


@contextmanager
def serve_hub() -> Iterator[LocalHub]:
    """Run a Hub on a free port of 127.0.0.1 inside the block."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_large(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".jpg", ".png")) or size > 10 * 2**20


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Silence."""

    # Answers

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "", message: str = "refused", **headers: str) -> None:
        extra = {"X_Error_Code": code} if code else {}
        self.answer(status, {"error": message}, X_Error_Message=message, **extra, **headers)

    # Who asks, and for what

    def user(self) -> tuple[str, str] | None:
        return _USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def readable(self, name: str) -> Repo | None:
        """The repository if this user may read it; otherwise None, and the refusal is sent."""
        repo, user = self.hub.repos.get(name), self.user()
        if repo is not None and (not repo.private or (user and user[0] == name.split("/")[0])):
            return repo
        # The Hub tells nobody whether a private repository exists
        self.refuse(404 if user else 401, "RepoNotFound", "Repository not found")
        return None

    def writable(self, name: str) -> Repo | None:
        repo = self.readable(name)
        if repo is None:
            return None
        user = self.user()
        if user is None:
            self.refuse(401, message="Invalid username or password.")
        elif user != (name.split("/")[0], "write"):
            self.refuse(403, message="Forbidden: you don't have write access to this repository")
        else:
            return repo
        return None

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    # Requests

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.body()
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            self.preupload(found[1], json.loads(body)["files"])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.lfs_batch(found[1], json.loads(body)["objects"])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.refuse(404, message=f"no such endpoint: {path}")

    def create(self, wanted: dict[str, Any]) -> None:
        user = self.user()
        if user is None:
            return self.refuse(401, message="Invalid username or password.")
        owner = wanted.get("organization") or user[0]
        name = f"{owner}/{wanted['name']}"
        if user != (owner, "write"):
            return self.refuse(403, message=f"You don't have the rights to create a model under the namespace {owner}")
        if name in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def preupload(self, name: str, files: list[dict[str, Any]]) -> None:
        if self.writable(name):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in files
            ]
            self.answer(200, {"files": modes})

    def lfs_batch(self, name: str, objects: list[dict[str, Any]]) -> None:
        if self.writable(name):
            answers = []
            for item in objects:
                href = f"{self.hub.url}/upload/{item['oid']}"
                missing = item["oid"] not in self.hub.blobs
                actions = {"actions": {"upload": {"href": href, "header": {}}}} if missing else {}
                answers.append({"oid": item["oid"], "size": item["size"], **actions})
            self.answer(200, {"transfer": "basic", "objects": answers})

    def do_PUT(self) -> None:
        oid = self.path.rsplit("/", 1)[-1]
        self.hub.uploading.set()
        if self.hub.hold_uploads is not None:
            self.hub.hold_uploads.wait(60)
        if self.hub.dropped_uploads:
            self.hub.dropped_uploads -= 1
            self.rfile.read(10)
            self.close_connection = True
            return self.connection.close()
        data = self.body()
        if _sha256(data) != oid:
            return self.refuse(400, message="content doesn't match its checksum")
        self.hub.blobs[oid] = data
        self.hub.uploads.append(oid)
        self.answer(200)

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repo = self.writable(name)
        if repo is None:
            return None
        if self.hub.refused_commits:
            self.hub.refused_commits -= 1
            return self.refuse(400, message="the server is being mended")
        files = dict(repo.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
            else:
                return self.refuse(400, message=f"unknown operation {line['key']}")
        repo.commits.append(files)
        url = f"{self.hub.url}/{name}/commit/{repo.sha}"
        self.answer(200, {"success": True, "commitOid": repo.sha, "commitUrl": url, "hookOutput": ""})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            user = self.user()
            return self.answer(200, {"name": user[0], "type": "user"}) if user else self.refuse(401)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(found[1], found[2], found[3])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self.describe(found[1], found[2] or "main")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            return self.tree(found[1], found[2])
        return self.refuse(404, "EntryNotFound", message=f"no such endpoint: {path}")

    do_HEAD = do_GET

    def revision(self, name: str, revision: str) -> Repo | None:
        repo = self.readable(name)
        if repo is not None and revision not in ("main", repo.sha):
            self.refuse(404, "RevisionNotFound")
            return None
        return repo

    def describe(self, name: str, revision: str) -> None:
        if repo := self.revision(name, revision):
            siblings = [{"rfilename": path} for path in sorted(repo.files)]
            facts = {"id": name, "modelId": name, "sha": repo.sha, "private": repo.private, "gated": False}
            self.answer(200, {**facts, "siblings": siblings, "tags": ["diffusers"], "pipeline_tag": "image-to-image"})

    def tree(self, name: str, revision: str) -> None:
        if repo := self.revision(name, revision):
            entries = []
            for path, data in sorted(repo.files.items()):
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _sha256(data)[:40]}
                if _is_large(path, len(data)):
                    entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
                entries.append(entry)
            self.answer(200, entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.revision(name, revision)
        if repo is None:
            return
        if path not in repo.files:
            self.refuse(404, "EntryNotFound", X_Repo_Commit=repo.sha)
            return
        data = repo.files[path]
        headers = {"X_Repo_Commit": repo.sha, "ETag": f'"{_sha256(data)[:40]}"', "Content_Length": str(len(data))}
        if _is_large(path, len(data)):
            headers |= {"X_Linked_Etag": f'"{_sha256(data)}"', "X_Linked_Size": str(len(data))}
        self.answer(200, data, **headers)
