"""Lightning modules of the baselines and of the methods that adapt the rate; networks."""

from lightning_modules.hypergradient_descent import HypergradientDescentModule
from lightning_modules.meta import MetaModule
from lightning_modules.networks import (
    GRU,
    LSTM,
    MLP,
    Autoencoder,
    ConvNet,
    PoissonNetwork,
    PostLayerNorm,
    TrainedConvNet,
)
from lightning_modules.one_step import OneStepModule
from lightning_modules.schedules import warmup_cosine
from lightning_modules.supervised import SupervisedModule
from lightning_modules.transformers import ByteTransformer, VisionTransformer

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "Autoencoder",
    "ByteTransformer",
    "ConvNet",
    "HypergradientDescentModule",
    "MetaModule",
    "OneStepModule",
    "PoissonNetwork",
    "PostLayerNorm",
    "SupervisedModule",
    "TrainedConvNet",
    "VisionTransformer",
    "warmup_cosine",
]
