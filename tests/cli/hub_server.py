"""A hub on this machine: the few replies of which a download consists.

with Hub({"owner/name": {"config.json": b"..."}}) as hub:
    ... HF_ENDPOINT=hub.address ...
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REVISION = hashlib.sha1(b"a commit").hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves `repositories`, {name: {path: content}}.

    asked     each request for content: (path, first byte of the range)
    cut       content longer than this breaks off there, and all further requests fail
    """

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Reply)
        self.repositories = repositories
        self.asked: list[tuple[str, int]] = []
        self.cut: int | None = None
        self.broken = False
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Reply(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for name, files in self.server.repositories.items():
            if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/revision/"):
                listed = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
                return self._json({"id": name, "sha": REVISION, "siblings": listed, "tags": []})
            if path.startswith(f"/api/models/{name}/tree/"):
                return self._json(
                    [
                        {
                            "type": "file",
                            "path": file,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for file, data in files.items()
                    ]
                )
            if path.startswith(f"/{name}/resolve/"):
                file = path.removeprefix(f"/{name}/resolve/").split("/", 1)[1]
                if file in files:
                    return self._content(f"{name}/{file}", files[file])
        self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _json(self, value: object, status: int = 200, more: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._head(status, len(data), {"Content-Type": "application/json", **(more or {})})
        if self.command == "GET":
            self.wfile.write(data)

    def _content(self, path: str, data: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if self.command == "GET":
            self.server.asked.append((path, start))
            if self.server.broken:
                return self._json({"error": "down"}, 503)
        more = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": REVISION,
            "Accept-Ranges": "bytes",
        }
        if start:
            more["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if start else 200, len(data) - start, more)
        if self.command == "HEAD":
            return None
        cut = self.server.cut
        if cut is not None and len(data) > cut:
            self.wfile.write(data[start:cut])
            self.server.broken = self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None

    def _head(self, status: int, length: int, more: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **more}.items():
            self.send_header(key, value)
        self.end_headers()
