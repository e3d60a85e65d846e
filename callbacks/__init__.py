"""Callbacks, which depend on what a module's `training_step` returns and logs, not on its class."""

from callbacks.average import TailAverage
from callbacks.checkpoint import LastCheckpoint
from callbacks.config import LogInputs
from callbacks.divergence import DivergenceError, StopOnDivergence, not_finite
from callbacks.lr_find import FindLearningRate
from callbacks.schedule_free import ScheduleFree
from callbacks.trajectory import Trajectory

__all__ = [
    "DivergenceError",
    "FindLearningRate",
    "LastCheckpoint",
    "LogInputs",
    "ScheduleFree",
    "StopOnDivergence",
    "TailAverage",
    "Trajectory",
    "not_finite",
]
