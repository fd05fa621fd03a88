"""The lease on an output directory: a second run at the same time is told so, instead of doing the work twice.

It is a courtesy. What keeps a code set whole is that its manifest is created only if absent: two runs that both think
that they hold the lease end as if there were none.

Leases are numbered files, created only if absent. The highest number holds, and rewrites its own file now and then
for as long as it lives. One whose file stays the same belongs to a run that was killed: the next run takes the next
number, and the earlier one, if it was only asleep, finds that number and stops.
"""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
import uuid
from typing import Any

from distindex.errors import ConflictError, DistindexError, InputError
from distindex.progress import say
from distindex.storage import Storage

DIRECTORY = "_lease"
HEARTBEAT_S = 2.0
# A holder whose file has not changed for so long is dead. Seen by watching it, since clocks of machines differ.
STALE_S = 10.0
# A file that is older than this by its own word need not be watched: clocks that differ by more are no clocks.
_LONG_AGO_S = 300.0


class LeaseLostError(ConflictError):
    """Another run has taken this one for dead, and goes on with its work."""


class Lease:
    """A held lease. As a context manager it is released at the end, and the directory, if empty, is as before.

    Attributes:
        lost: whether another run has taken it over; known some seconds later.
    """

    def __init__(self, output: Storage, number: int, existed: bool) -> None:
        self.lost = False
        self._output, self._number, self._existed = output, number, existed
        self._started = _now()
        self._run = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @classmethod
    def take(cls, output: Storage) -> Lease:
        """Take the lease on a directory; where a run may have been killed, only after `STALE_S` seconds.

        Raises:
            ConflictError: another run holds it.
        """
        existed = output.exists()
        while True:
            held = _highest(output)
            if held:
                _refuse_if_alive(output, held)
            lease = cls(output, held + 1, existed)
            try:
                output.create_json(_path(lease._number), lease._content())
            except ConflictError:
                # Another run was faster, and is alive.
                continue
            lease._thread.start()
            return lease

    def lost_error(self) -> LeaseLostError:
        return LeaseLostError(
            f"{self._output.uri}: another run took this one for dead, as nothing was heard of it for "
            f"{STALE_S:.0f} s, and goes on with its work; leave it to that one"
        )

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if _highest(self._output) > self._number:
            return
        self._output.remove(DIRECTORY)
        if not self._existed and not self._output.names():
            self._output.remove("")

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                if self._output.exists(_path(self._number + 1)):
                    self.lost = True
                    return
                self._output.write_json(_path(self._number), self._content())
            except DistindexError:
                # The store is away. The work meets that too, and has the patience that it needs.
                continue

    def _content(self) -> dict[str, Any]:
        return {
            "holder": f"{socket.gethostname()}, process {os.getpid()}",
            "run": self._run,
            "started": self._started,
            "heartbeat": _now(),
        }


def _refuse_if_alive(output: Storage, number: int) -> None:
    content = _read(output, number)
    if not content or _age(content) > _LONG_AGO_S:
        return
    say(f"{output.uri}: a run was encoding here, looking for up to {STALE_S:.0f} s whether it still is")
    watched = time.monotonic()
    while time.monotonic() - watched < STALE_S:
        time.sleep(HEARTBEAT_S / 4)
        now = _read(output, number)
        if not now:
            # It has ended in good order.
            return
        if now != content:
            raise ConflictError(
                f"{output.uri}: another run is encoding here ({now.get('holder')}, since {now.get('started')}); wait "
                "for it, or stop it and start this again, which goes on with what is done"
            )


def _read(output: Storage, number: int) -> dict[str, Any]:
    """What a lease says; nothing where it has been released, or is no lease."""
    try:
        content = output.read_json(_path(number))
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def _age(content: dict[str, Any]) -> float:
    try:
        heartbeat = datetime.datetime.fromisoformat(content["heartbeat"])
        return (datetime.datetime.now(datetime.UTC) - heartbeat).total_seconds()
    except (KeyError, TypeError, ValueError):
        return 0.0


def _highest(output: Storage) -> int:
    return max(_numbers(output), default=0)


def _numbers(output: Storage) -> list[int]:
    stems = [name.removesuffix(".json") for name in output.names(DIRECTORY)]
    return [int(stem) for stem in stems if stem.isdecimal()]


def _path(number: int) -> str:
    return f"{DIRECTORY}/{number:08d}.json"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
