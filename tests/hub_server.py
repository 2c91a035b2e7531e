"""A model hub on this machine: as much of its HTTP protocol as uploading a folder and downloading a snapshot take."""

from __future__ import annotations

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


def commit_of(name: str) -> str:
    """The commit of a repository, or of another revision that is kept as `repository@revision`."""
    return hashlib.sha1(name.encode()).hexdigest()


@dataclass
class Hub:
    """Its address, and what was uploaded: files by repository (`repository@revision` for other revisions than the main
    one) and path.
    """

    address: str
    token: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)


@contextmanager
def hub_server(token: str) -> Iterator[Hub]:
    """A hub that takes uploads with this token."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: Any = None, **headers: str) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {token}":
                return self.answer(401, {"error": "no token"})
            path = self.path.split("?")[0]
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = (
                    f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
                )
                hub.repositories.setdefault(name, {})
                hub.private[name] = (
                    asked.get("visibility", "private" if asked.get("private") else "public") == "private"
                )
                return self.answer(200, {"url": f"{hub.address}/{name}"})
            repository, _, action = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
            if action == "preupload":
                files = [
                    {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for each in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.repositories[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(
                200,
                {
                    "commitUrl": f"{hub.address}/{repository}/commit/{commit_of(repository)}",
                    "commitOid": commit_of(repository),
                    "hookOutput": "",
                },
            )

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            asked = path.startswith("/api/models/")
            repository, _, rest = re.sub(
                "/(revision|tree|resolve)/", "\n", path.removeprefix("/api/models").lstrip("/"), count=1
            ).partition("\n")
            revision, _, file = rest.partition("/")
            kept = [name for name in hub.repositories if name.partition("@")[0] == repository]
            name = next(
                (name for name in kept if (revision or "main") in (name.partition("@")[2] or "main", commit_of(name))),
                "",
            )
            files = hub.repositories.get(name)
            if files is None or (not asked and file not in files):
                return self.answer(404, {"error": "not found"})
            if not asked:
                return self.answer(
                    200, files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"', X_Repo_Commit=commit_of(name)
                )
            if "/tree/" in path:
                return self.answer(
                    200,
                    [
                        {"type": "file", "path": each, "size": len(content), "oid": "0" * 40}
                        for each, content in files.items()
                    ],
                )
            siblings = [{"rfilename": each} for each in files]
            return self.answer(
                200, {"_id": "1", "id": repository, "modelId": repository, "sha": commit_of(name), "siblings": siblings}
            )

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", token)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
