"""Adapt the learning rate by its gradient, for optimizers whose step is proportional to it. Requires only torch."""

from hypergradient.adapter import RateAdapter
from hypergradient.finite import NotFiniteError
from hypergradient.meta import Meta
from hypergradient.notices import Notice
from hypergradient.one_step import hypergradient, lookahead, real_step, scaled
from hypergradient.sets import Average
from hypergradient.settings import Settings
from hypergradient.support import check_supported
from hypergradient.trace import no_trace

__all__ = [
    "Average",
    "Meta",
    "NotFiniteError",
    "Notice",
    "RateAdapter",
    "Settings",
    "check_supported",
    "hypergradient",
    "lookahead",
    "no_trace",
    "real_step",
    "scaled",
]
