"""Samples served as whole tensors: mnist1d as published, and tasks of other kinds."""

from data.loader import TensorLoader
from data.mnist1d import MNIST1DDataModule
from data.scikit import DigitsDataModule, FriedmanDataModule
from data.text import TextDataModule

__all__ = ["DigitsDataModule", "FriedmanDataModule", "MNIST1DDataModule", "TensorLoader", "TextDataModule"]
