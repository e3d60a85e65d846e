"""Speed and memory, as ratios to a plain step, a bare Trainer and a raw loop: `python -m benchmarks`."""
