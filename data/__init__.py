"""The published mnist1d arrays, served as whole tensors."""

from data.loader import TensorLoader
from data.mnist1d import MNIST1DDataModule

__all__ = ["MNIST1DDataModule", "TensorLoader"]
