"""Renders an example, or the prompt that a server feeds to the model, and records the origin of every character.

`lookup` finds a template by name or path, and `sandbox.untrusted` reads template files. A `Template` checks its source
(`source`, `metadata`, `kwargs`), makes the variables for an example (`variables`, `accepted_forms`) and renders them in
a Jinja environment that tracks the origin of text (`environment`, `provenance`). Then `targets` decides the generation
boundary of a turn, `end_markers` its end marker, and `turns` which turns are trained in which text; `prefixes` renders
all beginnings of a conversation at once. `completeness` refuses an example if the text lacks one of its fields.
`sandbox` limits the cost of untrusted templates. `tracing` compiles templates for speed.
"""

from templatekit.formats.sandbox.untrusted import load_template
from templatekit.formats.template import Template

__all__ = ["Template", "load_template"]
