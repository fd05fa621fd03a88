"""An S3 endpoint on loopback, moto's server in a process of its own, and a proxy before it that fails."""

from __future__ import annotations

import collections
import contextlib
import http.client
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

BUCKET = "bucket"

_SERVER = """
from moto.server import ThreadedMotoServer; import sys
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0); server.start()
print(server.get_host_and_port()[1], flush=True); sys.stdin.read()
"""


def options_of(port: int) -> dict[str, Any]:
    """Storage options for the endpoint at a port of loopback."""
    return {"endpoint_url": f"http://127.0.0.1:{port}", "key": "testing", "secret": "testing"}


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """The port of a running endpoint with the empty bucket `BUCKET`."""
    import s3fs

    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        port = next(int(line) for line in process.stdout if line.strip().isdigit())
        s3fs.S3FileSystem(**options_of(port)).mkdir(BUCKET)
        yield port
    finally:
        process.kill()
        process.wait()


Fault = Literal["throttled", "dropped", "answer lost", "cut", "short"]
FAULTS: tuple[Fault, ...] = ("throttled", "dropped", "answer lost", "cut", "short")

_ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{}</Message><RequestId>1</RequestId></Error>'


class FaultyProxy:
    """Forwards to an endpoint, and lets a share of the requests fail until there were enough of them.

    Attributes:
        share: probability that a request fails.
        left: failures that are still to come.
        denied: answer every request with 403.
        counted: failures so far, by kind.
        requests: requests so far.
        sent: bytes of their answers.
    """

    def __init__(self, port: int, share: float, faults: int, kinds: Sequence[Fault] = FAULTS, seed: int = 0) -> None:
        self.share, self.left, self.denied, self.requests, self.sent = share, faults, False, 0, 0
        self._kinds = kinds
        self.counted: collections.Counter[str] = collections.Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    proxy._handle(self, port)

            do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.options = options_of(self._server.server_address[1])

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _next_fault(self, ranged: bool) -> Fault | None:
        with self._lock:
            self.requests += 1
            if not self.left or self._random.random() >= self.share:
                return None
            possible: list[Fault] = [kind for kind in self._kinds if ranged or kind != "short"]
            fault = self._random.choice(possible)
            self.left -= 1
            self.counted[fault] += 1
            return fault

    def _handle(self, request: BaseHTTPRequestHandler, port: int) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self._next_fault(request.command == "GET" and "Range" in request.headers)
        if self.denied:
            _send(request, 403, _ERROR.format("AccessDenied", "Access Denied").encode())
        elif fault == "throttled":
            _send(request, 503, _ERROR.format("SlowDown", "Please reduce your request rate.").encode())
        elif fault == "dropped":
            _drop(request)
        else:
            _forward(request, port, body, fault, self._count)

    def _count(self, sent: int) -> None:
        with self._lock:
            self.sent += sent


def _forward(
    request: BaseHTTPRequestHandler, port: int, body: bytes, fault: Fault | None, count: Callable[[int], None]
) -> None:
    """Pass a request on and its answer back, its bytes counted first: whoever has it may look at the sum at once."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(request.command, request.path, body, dict(request.headers.items()))
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if fault == "answer lost":
        _drop(request)
        return
    if fault == "short":
        data = data[: len(data) // 2]
    head = request.command == "HEAD"
    # Other stores send no checksum: a short answer is then like any other.
    hidden = ("content-length", "transfer-encoding", "connection", "date", "server", "x-amz-checksum-crc32")
    length = answer.headers.get("Content-Length", "0") if head else str(len(data))
    count(0 if head else len(data))
    request.send_response(answer.status)
    for name, value in answer.headers.items():
        if name.lower() not in hidden:
            request.send_header(name, value)
    request.send_header("Content-Length", length)
    request.end_headers()
    if fault == "cut":
        request.wfile.write(data[: len(data) // 2])
        _drop(request)
    elif not head:
        request.wfile.write(data)


def _send(request: BaseHTTPRequestHandler, status: int, data: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Type", "application/xml")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)


def _drop(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    with contextlib.suppress(OSError):
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)
