"""As much of the Hugging Face hub as reading a data set at a revision takes, over HTTP, out of a folder."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@contextmanager
def serving(root: Path, repository: str, revision: str):
    """Yields (address, requests seen as "METHOD path")."""
    seen: list[str] = []

    def entry(path: Path) -> dict:
        name = str(path.relative_to(root))
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40} if path.is_file() else {
            "type": "directory", "path": name, "size": 0, "oid": "0" * 40
        }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.answer()

        def do_HEAD(self):
            self.answer()

        def do_POST(self):
            self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

        def answer(self, body: str = "") -> None:
            path = unquote(urlsplit(self.path).path)
            seen.append(f"{self.command} {path}")
            api, files = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/{revision}/"
            if path == f"{api}/revision/{revision}":
                return self.send({"_id": "0", "id": repository, "sha": revision, "private": False, "tags": [], "siblings": []})
            if path == f"{api}/paths-info/{revision}":
                given = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
                return self.send([entry(root / name) for name in given if (root / name).exists()])
            if path.startswith(f"{api}/tree/{revision}"):
                folder = root / path.removeprefix(f"{api}/tree/{revision}").strip("/")
                if folder.is_dir():
                    return self.send([entry(each) for each in sorted(folder.rglob("*"))])
            if path.startswith(files) and (root / path.removeprefix(files)).is_file():
                content = (root / path.removeprefix(files)).read_bytes()
                wanted = self.headers.get("Range")
                if wanted:
                    start, _, end = wanted.removeprefix("bytes=").partition("-")
                    content = content[int(start) : int(end or len(content)) + 1]
                return self.send(content, 206 if wanted else 200)
            self.send({"error": f"no {path}"}, 404)

        def send(self, content: object, status: int = 200) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
