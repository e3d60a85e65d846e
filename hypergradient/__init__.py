"""The learning rate's own gradient: any optimizer whose step is proportional to its rate, torch alone."""

from hypergradient.adaptation import Adaptation
from hypergradient.adapter import RateAdapter
from hypergradient.average import Average
from hypergradient.hooks import NotFiniteError
from hypergradient.one_step import OneStepAdapter
from hypergradient.search import search_rate
from hypergradient.settings import Settings
from hypergradient.start import starting_rate
from hypergradient.step import hypergradient, lookahead, real_step, scaled
from hypergradient.support import check_supported
from hypergradient.trace import no_trace
from hypergradient.twin import Twin

__all__ = [
    "Adaptation",
    "Average",
    "NotFiniteError",
    "OneStepAdapter",
    "RateAdapter",
    "Settings",
    "Twin",
    "check_supported",
    "hypergradient",
    "lookahead",
    "no_trace",
    "real_step",
    "scaled",
    "search_rate",
    "starting_rate",
]
