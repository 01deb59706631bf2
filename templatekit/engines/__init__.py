"""Where chunks of records are worked on: in this process, in several of this machine, or on a Ray cluster."""
