"""Make runs: the command line, a single run, a tuning study, a grid of runs, the published results."""

import tracking  # noqa: F401  # first: it sets MLflow's environment
