"""`distindex deploy`: have a service go to another version of its index."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from distindex.errors import InputError, UnavailableError
from distindex.progress import say
from distindex.serve_config import DeployConfig
from distindex.serving.remote import HttpSearcher

_LOOK_S = 0.2


@dataclasses.dataclass(frozen=True)
class DeployReport:
    """What a service serves now.

    Attributes:
        target: its address.
        version: the version that it serves.
        before: the one that it served before.
        rows: of the version.
        seconds: from the request until it was served.
    """

    target: str
    version: int
    before: int
    rows: int
    seconds: float


def deploy(config: DeployConfig) -> DeployReport:
    """Have a service go to a version, and return when it serves it everywhere.

    Raises:
        InputError: the target is no address, there is no such version, or it cannot take the place of the one that
            is served.
        ConflictError: the service is on its way to another version.
        UnavailableError: the version could not be loaded, and the one before is served; or the service does not
            answer.
    """
    if not config.target.startswith(("http://", "https://")):
        raise InputError(f"target: {config.target} is not an address; give that of a service, http://HOST:PORT")
    began = time.monotonic()
    with HttpSearcher(config.target) as service:
        before = service.deploying()["version"]
        state = service.deploy(config.version)
        wanted = state["deploying"] or state["version"]
        step = None
        while state["deploying"] is not None:
            if state["step"] != step:
                step = state["step"]
                say(f"version {wanted}: {step}")
            if time.monotonic() - began > config.timeout_s:
                raise UnavailableError(
                    f"{config.target}: still {step} version {wanted} after {config.timeout_s:g} s; "
                    "it goes on, look at /v1/deploy"
                )
            time.sleep(_LOOK_S)
            state = service.deploying()
        _check(config.target, wanted, state)
        info = service.info()
    return DeployReport(config.target, wanted, before, info["rows"], round(time.monotonic() - began, 3))


def _check(target: str, wanted: int, state: dict[str, Any]) -> None:
    if state["version"] == wanted:
        return
    why = state["error"] or "the deployment was broken off; deploy again"
    raise UnavailableError(f"{target}: {why}; version {state['version']} is served")
