"""Ray Train and Ray Tune over `hashing/`."""

from distindex.training.train import TrainReport, train

__all__ = ["TrainReport", "train"]
