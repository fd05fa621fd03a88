"""Ray Train over `hashing/`."""

from distindex.training.train import TrainReport, train

__all__ = ["TrainReport", "train"]
