"""Benchmarks, mostly as ratios to a bound that is measured in the same run: `make bench`."""
