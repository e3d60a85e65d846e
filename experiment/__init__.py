"""How runs are made: the command line of one run, a sweep of many, tuning, comparison, the stages of the results."""

import tracking  # noqa: F401  # before MLflow, whose environment it sets
