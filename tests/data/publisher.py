"""A publisher's web server on this machine, with the failures that real ones have."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Publisher:
    """A local web server with the failures that real ones have; remembers what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True  # answer Range requests with the range
        self.break_after: int | None = None  # close the line after so many bytes of a body
        self.asked: list[tuple[str, str | None]] = []  # path, Range header
        self.encodings: set[str | None] = set()  # Accept-Encoding headers
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                publisher.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.mirror = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.encodings.add(request.headers.get("Accept-Encoding"))
        name, wanted = request.path.strip("/"), request.headers.get("Range")
        self.asked.append((name, wanted))
        if name not in self.files:
            request.send_error(404)
            return
        body, start = self.files[name], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                request.send_error(416)
                return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        # A real one does this to .gz files; a client that unpacks them on arrival gets other bytes.
        request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        sent = body[start:]
        if self.break_after is not None:
            sent = sent[: self.break_after]
            request.close_connection = True
        request.wfile.write(sent)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
