"""Templates that a stranger wrote: what they may cost is metered, or bounded by the operating system."""
