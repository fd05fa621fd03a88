"""Encoding a corpus into a code set with Ray Data; one corpus file is one unit of work."""

from distindex.encoding.encode import EncodeReport, encode

__all__ = ["EncodeReport", "encode"]
