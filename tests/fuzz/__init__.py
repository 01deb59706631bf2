"""Fuzzing: random and mutated input for readers, templates, turns, checkpoints and recipes; see `__main__`."""
