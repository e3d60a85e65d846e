"""How runs are made: the command line, one run, a tuning study, a grid of runs, the published results."""

import tracking  # noqa: F401  # before MLflow, whose environment it sets
