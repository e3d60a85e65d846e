"""What is trained, and how: one ordinary module for the baselines, and those that learn their rate."""

from lightning_modules.hypergradient_descent import HypergradientDescentModule
from lightning_modules.meta import MetaModule
from lightning_modules.networks import GRU, MLP, ConvNet
from lightning_modules.one_step import OneStepModule
from lightning_modules.schedules import Replay, linear, plateau
from lightning_modules.search import SearchModule
from lightning_modules.search_decay import SearchDecayModule
from lightning_modules.supervised import SupervisedModule

__all__ = [
    "GRU",
    "MLP",
    "ConvNet",
    "HypergradientDescentModule",
    "MetaModule",
    "OneStepModule",
    "Replay",
    "SearchDecayModule",
    "SearchModule",
    "SupervisedModule",
    "linear",
    "plateau",
]
