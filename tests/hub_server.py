"""A model hub on this machine: as much of its HTTP protocol as uploading a folder and downloading a snapshot take."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 40


@dataclass
class Hub:
    """Its address, and what was uploaded: files by repository and path."""

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
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
                hub.repositories.setdefault(name, {})
                hub.private[name] = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
                return self.answer(200, {"url": f"{hub.address}/{name}"})
            repository, _, action = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
            if action == "preupload":
                files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
                return self.answer(200, {"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.repositories[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(200, {"commitUrl": f"{hub.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""})

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/"):
                repository = path.removeprefix("/api/models/").split("/revision/")[0].split("/tree/")[0]
                if repository not in hub.repositories:
                    return self.answer(404, {"error": "not found"})
                files = hub.repositories[repository]
                if "/tree/" in path:
                    listing = [{"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in files.items()]
                    return self.answer(200, listing)
                siblings = [{"rfilename": name} for name in files]
                return self.answer(200, {"_id": "1", "id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings})
            repository, _, rest = path.lstrip("/").partition("/resolve/")
            content = hub.repositories.get(repository, {}).get(rest.partition("/")[2])
            if content is None:
                return self.answer(404, {"error": "not found"})
            return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

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
