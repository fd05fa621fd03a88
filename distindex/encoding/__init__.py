"""Encoding a corpus into a code set with Ray Data; a file, or some row groups of a large one, is one unit of work."""

from distindex.encoding.encode import encode, plan_encoding, run
from distindex.encoding.report import EncodePlan, EncodeReport

__all__ = ["EncodePlan", "EncodeReport", "encode", "plan_encoding", "run"]
