"""What to label next: DH-APS and what it is compared with. Pure numpy; works in a notebook.

Shape suffixes besides those of `distindex.codes`: P pairs of rows, D features of a kernel, L labels.
"""

from distindex.labeling.pool import Pool
from distindex.labeling.strategies import Selected, in_pairs, select

__all__ = ["Pool", "Selected", "in_pairs", "select"]
