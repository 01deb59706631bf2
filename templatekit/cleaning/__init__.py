"""Which records are left out before they are rendered: by an expression, or because they repeat another.

A record that is left out becomes a `LeftOut` in its place: it keeps its row number, and is counted under its reason.
"""
