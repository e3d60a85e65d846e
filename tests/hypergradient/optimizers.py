"""The optimizers used by the tests: one list."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import prodigyopt
import schedulefree
from torch import optim
from torch.optim import Optimizer

Factory = Callable[[Iterable[Any]], Optimizer]

SUPPORTED: dict[str, Factory] = {
    "SGD": partial(optim.SGD, lr=0.1),
    "SGD-momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "SGD-nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": partial(optim.Adam, lr=0.02),
    "Adam-amsgrad": partial(optim.Adam, lr=0.02, amsgrad=True, weight_decay=0.01),
    "AdamW": partial(optim.AdamW, lr=0.02, weight_decay=0.1),
    "NAdam": partial(optim.NAdam, lr=0.02),
    "RAdam": partial(optim.RAdam, lr=0.02),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": partial(optim.Adagrad, lr=0.05, lr_decay=0.01),
    "Adadelta": partial(optim.Adadelta, lr=0.5),
    "Adamax": partial(optim.Adamax, lr=0.02),
    "Muon": partial(optim.Muon, lr=0.02, weight_decay=0.1),
}

REFUSED: dict[str, Factory] = {
    "Rprop": partial(optim.Rprop, lr=0.01),
    "ASGD": partial(optim.ASGD, lr=0.01),
    "LBFGS": partial(optim.LBFGS, lr=0.01),
    "SparseAdam": partial(optim.SparseAdam, lr=0.01),
    "Adafactor": partial(optim.Adafactor, lr=0.01),
    "Prodigy": partial(prodigyopt.Prodigy, lr=1.0),
    "AdamWScheduleFree": partial(schedulefree.AdamWScheduleFree, lr=0.01),
}

ELSEWHERE = {"Prodigy", "AdamWScheduleFree"}
"""Of the refused ones, those of other packages: they adapt the rate themselves."""
