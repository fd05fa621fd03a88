"""Steps of a change as Ray tasks, no more of them at a time on a node than its memory holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distindex.errors import DistindexError, InputError
from distindex.progress import Bar, say

# Up to this, memory is no concern, and Ray need not count it.
_NOTICED = 256 << 20
# Ray starts tasks in their order, so that one of the first of them ends next.
_WATCHED = 256
# Longest wait for tasks that are told to stop, in seconds.
_CANCELLED_S = 30


def on_ray(
    step: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any], *, what: str, memory: int = 0
) -> list[Any]:
    """Run a step for each item as a Ray task; see `index.tasks.Each`.

    Raises:
        InputError: no node has the memory for one step.
    """
    import ray
    from ray.exceptions import RayTaskError

    if not items:
        return []
    options: dict[str, Any] = {"num_cpus": 1}
    if memory:
        say(f"{what}: {len(items)} task{'s' * (len(items) != 1)} of at most {_megabytes(memory)} each")
    if memory > _NOTICED:
        most = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
        if memory > most:
            raise InputError(
                f"shards: {what} would take {_megabytes(memory)} in one task, but no node of the cluster has more "
                f"than {_megabytes(most)}; give more shards"
            )
        options["memory"] = memory
    task = ray.remote(step).options(**options)
    common = ray.put(shared)
    references = [task.remote(common, item) for item in items]
    position_of = {reference: position for position, reference in enumerate(references)}
    results: list[Any] = [None] * len(items)
    waiting = references
    try:
        with Bar(what, len(items), "tasks") as bar:
            while waiting:
                # Of thousands at once each wait would cost more than a task does.
                ready, early = ray.wait(waiting[:_WATCHED])
                waiting = early + waiting[_WATCHED:]
                for reference in ready:
                    results[position_of[reference]] = ray.get(reference)
                    bar.advance(1)
    except RayTaskError as error:
        for reference in waiting:
            ray.cancel(reference)
        if waiting:
            # What they are writing must not come after the caller has cleaned up.
            ray.wait(waiting, num_returns=len(waiting), timeout=_CANCELLED_S)
        if isinstance(error.cause, DistindexError):
            raise error.cause from None
        raise
    return results


def _megabytes(size: float) -> str:
    return f"{max(1, size / 1e6):,.0f} MB"
