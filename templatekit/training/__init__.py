"""The only room that knows torch: from examples to a trained model."""

import os

# torch's threads on a CPU wait for each other by spinning, for milliseconds. Where another process wants the cores too,
# a step of SmolLM2 took 4 to 30 s instead of 1; with this many turns it takes 2, and alone as long as before. Read when
# torch is loaded, so it comes before that; a user's own setting stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
