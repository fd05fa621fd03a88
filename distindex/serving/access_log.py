"""One line of JSON for each request, on the standard output of the process that answered it, where Ray keeps it."""

from __future__ import annotations

import datetime
import json
import sys

from distindex.serving.activity import Done


def write(done: Done) -> None:
    """Log a request that was answered: times are in UTC, durations in ms."""
    line = {
        "time": datetime.datetime.fromtimestamp(done.began, datetime.UTC).isoformat(timespec="milliseconds"),
        "request_id": done.id,
        "client": done.client,
        "method": done.method,
        "path": done.path,
        "status": done.status,
        "ms": round(done.seconds * 1000, 3),
        "queries": done.queries,
        "stages_ms": {name: round(seconds * 1000, 3) for name, seconds in done.stages.items()},
    }
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()
