"""Speed beside the limit, in one run, as ratios: `make bench`."""
