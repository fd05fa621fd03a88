"""An HTTP server inside a process that does other things too. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import uvicorn
from fastapi import FastAPI

from distindex.errors import InputError, UnavailableError

# Requests at work when the service is told to stop are answered for so long, in seconds.
DRAINING_S = 4
# Longer than clients keep a connection that they do not use: the one who closes it first breaks no request.
_KEEP_ALIVE_S = 75


def bind(host: str, port: int, shared: bool, setting: str = "port") -> socket.socket:
    """A socket bound to an address of this machine; a host of "" stands for all.

    Args:
        host: name or address.
        port: TCP port.
        shared: others may listen on the port too, if all say so; the kernel gives each its part of the connections.
        setting: what the port is called where it is set.

    Raises:
        InputError: the host is not this machine, or somebody listens there.
    """
    try:
        address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise InputError(f"host: {host!r} is not an address of this machine ({error})") from error
    bound = socket.socket(address[0], socket.SOCK_STREAM)
    # Ports of connections that have just closed are free to listen on.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(address[4])
    except OSError as error:
        bound.close()
        raise InputError(
            f"{setting}: cannot listen on {host}:{port} ({error.strerror}); set {setting} to a free one"
        ) from error
    return bound


def check_certificate(certificate: str, key: str) -> None:
    """Refuse PEM files that cannot be read or do not belong together.

    Raises:
        InputError: names them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password, or OpenSSL asks for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"tls_certificate: {certificate} with the key {key} cannot be used ({error})") from error


class Listener:
    """An HTTP server in the running event loop.

    Args:
        api: what answers.
        host: name or address to listen on.
        port: TCP port; several listeners of one machine share it.
        tls: PEM files of the certificate and of its key; None speaks plain HTTP.

    Raises:
        InputError: the host is not this machine, or the PEM files cannot be used.
    """

    def __init__(self, api: FastAPI, host: str, port: int, tls: tuple[str, str] | None = None) -> None:
        if tls is not None:
            check_certificate(*tls)
        self._socket = bind(host, port, shared=True)
        config = uvicorn.Config(
            api,
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAINING_S,
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]))

    async def started(self) -> None:
        """Return when it listens; raises UnavailableError where it does not come to that."""
        while not self._server.started:
            self.check()
            await asyncio.sleep(0.01)

    def check(self) -> None:
        """Raises UnavailableError where it has stopped listening."""
        if self._serving.done():
            raise UnavailableError("the HTTP server has ended")

    async def stop(self) -> None:
        """Take no more connections, answer what is at work, and end."""
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._serving
