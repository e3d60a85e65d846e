"""Speed and precision, measured beside the limit and the peers: `make bench`. Never a timed test."""
