"""A tracing just-in-time compiler for templates: a shape of example is traced once, later ones fill the trace in."""
