"""Rounds of choosing, labeling and training; puts labeling, training and evaluation together."""

from distindex.rounds.run import LabelRunReport
from distindex.rounds.run import run as label

__all__ = ["LabelRunReport", "label"]
