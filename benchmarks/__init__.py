"""Measure speed and memory against a plain step, a bare Trainer and a raw loop: `python -m benchmarks`."""
