"""What is trained, and how: one ordinary module for the baselines, and the one that learns its rate."""

from lightning_modules.classifier import Classifier
from lightning_modules.meta_classifier import MetaClassifier
from lightning_modules.networks import MLP

__all__ = ["MLP", "Classifier", "MetaClassifier"]
