"""How the steps of a change are run: one after another here, or elsewhere as the caller arranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

SharedT = TypeVar("SharedT")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Each(Protocol):
    """Runs a step for each item and returns the results in the order of the items.

    A step is a function of a module (so that it can be sent to another process), of what all items share, and of
    one item; it raises errors of `distindex.errors`, which come out as they are.
    """

    def __call__(
        self,
        step: Callable[[SharedT, ItemT], ResultT],
        shared: SharedT,
        items: Sequence[ItemT],
        *,
        what: str,
        memory: int = 0,
    ) -> list[ResultT]:
        """Run it.

        Args:
            step: what is done for each item.
            shared: its first argument.
            items: its second arguments.
            what: for progress, such as "writing shards".
            memory: bytes that one step takes at most, as far as that is known.
        """
        ...


def one_by_one(
    step: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any], *, what: str, memory: int = 0
) -> list[Any]:
    """In this process, one after another."""
    return [step(shared, item) for item in items]
