"""What is trained, and how: one ordinary module for the baselines, and those that learn their rate."""

from lightning_modules.classifier import Classifier
from lightning_modules.descent_classifier import DescentClassifier
from lightning_modules.meta_classifier import MetaClassifier
from lightning_modules.networks import GRU, MLP, ConvNet
from lightning_modules.one_step_classifier import OneStepClassifier
from lightning_modules.schedules import Replay, linear, plateau
from lightning_modules.search_classifier import SearchClassifier

__all__ = [
    "GRU",
    "MLP",
    "Classifier",
    "ConvNet",
    "DescentClassifier",
    "MetaClassifier",
    "OneStepClassifier",
    "Replay",
    "SearchClassifier",
    "linear",
    "plateau",
]
