"""Data modules over whole tensors: mnist1d as published, and other small tasks."""

from data.loader import TensorLoader
from data.mnist1d import MNIST1DDataModule
from data.scikit import DiabetesDataModule, DigitsDataModule, FriedmanDataModule
from data.synthetic import AddingDataModule, PoissonDataModule
from data.text import TextDataModule

__all__ = [
    "AddingDataModule",
    "DiabetesDataModule",
    "DigitsDataModule",
    "FriedmanDataModule",
    "MNIST1DDataModule",
    "PoissonDataModule",
    "TensorLoader",
    "TextDataModule",
]
