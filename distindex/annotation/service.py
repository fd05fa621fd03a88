"""`distindex label serve`: one process that people label by."""

from __future__ import annotations

import contextlib
import os

import uvicorn

from distindex.annotation.api import make_api
from distindex.annotation.desk import Desk
from distindex.errors import InputError
from distindex.label_config import LabelServeConfig
from distindex.progress import say
from distindex.serving.access import Access, digests_of, read_tokens
from distindex.serving.listener import DRAINING_S, bind
from distindex.serving.transport import TOKEN_VARIABLE

_OWN_NAMES = ("127.0.0.1", "localhost", "::1")


def serve(config: LabelServeConfig) -> None:
    """Answer the page and its requests until Ctrl-C or SIGTERM.

    Raises:
        InputError: there is nothing to ask about, the port is taken, or others could label without a token.
    """
    tokens, where = _tokens(config)
    if not tokens and config.host not in _OWN_NAMES:
        raise InputError(
            f"host: {config.host!r} lets whoever reaches this machine label; set token_file or {TOKEN_VARIABLE}"
        )
    access = Access(digests_of(tokens, where))
    desk = Desk(config)
    bound = bind(config.host, config.port, shared=False)
    api = make_api(desk, access, () if tokens else _OWN_NAMES)
    shown = f"[{config.host}]" if ":" in config.host else config.host
    say(f"ready at http://{shown}:{config.port} in a browser; answers go to {desk.store_uri}")
    say("  stop with Ctrl-C")
    server = uvicorn.Server(
        uvicorn.Config(
            api,
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            timeout_graceful_shutdown=DRAINING_S,
        )
    )
    # uvicorn stops by itself, and then raises the signal again.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[bound])


def _tokens(config: LabelServeConfig) -> tuple[list[str], str]:
    if config.token_file is not None:
        return read_tokens(config.token_file), f"token_file: {config.token_file}"
    given = os.environ.get(TOKEN_VARIABLE)
    return [given] if given else [], TOKEN_VARIABLE
