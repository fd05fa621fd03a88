"""Pure PyTorch: networks, objectives, the methods, the Hasher bundle and the classic baselines.

`Hasher` is imported at first use: `description` says what a hasher is without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distindex.hashing.hasher import Hasher

__all__ = ["Hasher"]


def __getattr__(name: str) -> Any:
    if name != "Hasher":
        raise AttributeError(f"module 'distindex.hashing' has no attribute {name!r}")
    from distindex.hashing.hasher import Hasher

    return Hasher
