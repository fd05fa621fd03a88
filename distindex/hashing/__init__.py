"""Pure PyTorch: networks, objectives, the methods, the Hasher bundle and the classic baselines."""

from distindex.hashing.hasher import Hasher

__all__ = ["Hasher"]
