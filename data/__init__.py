"""Samples served as whole tensors: mnist1d as published, and two tasks of another kind."""

from data.loader import TensorLoader
from data.mnist1d import MNIST1DDataModule
from data.scikit import DigitsDataModule, FriedmanDataModule

__all__ = ["DigitsDataModule", "FriedmanDataModule", "MNIST1DDataModule", "TensorLoader"]
