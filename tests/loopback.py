"""A service on this machine for the vendors' own SDKs: `server`, and answers in the shapes of two vendors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
GEMINI = {"candidates": [{"content": {"parts": [{"text": "?"}], "role": "model"}, "finishReason": "STOP"}],
          "usageMetadata": {"promptTokenCount": 90, "candidatesTokenCount": 7, "thoughtsTokenCount": 3}}
OPENAI = {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
          "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "?"}}],
          "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}}


@contextmanager
def server(respond: Callable) -> Iterator[tuple[str, list]]:
    """A loopback server; `respond(body)` gives (status, headers, object or bytes). Yields its address and requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, dict(self.headers), body))
            status, headers, reply = respond(body)
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json", "Connection": "close"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()  # seconds until it sees the end
        yield f"http://127.0.0.1:{http.server_port}", seen
        http.shutdown()
