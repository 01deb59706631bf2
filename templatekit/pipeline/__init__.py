"""The stages joined: records in, tokenized samples out, and a count of everything that was dropped and why."""
