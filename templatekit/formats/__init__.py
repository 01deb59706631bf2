"""Record → example → text: adapters, templates, and the provenance of every character."""

from templatekit.formats.template import Template, load_template

__all__ = ["Template", "load_template"]
