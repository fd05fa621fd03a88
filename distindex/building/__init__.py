"""Code set in, index version out, with Ray over index/."""

from distindex.building.build import BuildReport, build

__all__ = ["BuildReport", "build"]
