"""A receiver of webhooks that takes everything."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Taker(http.server.BaseHTTPRequestHandler):
    """Takes webhooks."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def taking(port: int) -> Iterator[str]:
    """Run it, and yield the address of its hook."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Taker)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/hook"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
