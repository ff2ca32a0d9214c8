"""Small servers for tests: handlers that answer JSON and say nothing, served on a thread while a test needs them."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

Server = TypeVar("Server")


class JsonAnswers:
    """Beside `BaseHTTPRequestHandler`: how a handler answers; it writes no log."""

    def answer(self: Any, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        """Sends bytes as they are, and anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        own = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, value in {**own, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(server: Server, **state: Any) -> Iterator[Server]:
    """Serves on a thread; `state` becomes attributes of the server, where its handler finds them."""
    running: Any = server
    for name, value in state.items():
        setattr(running, name, value)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
