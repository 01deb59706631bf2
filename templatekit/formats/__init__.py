"""Record → example → text: adapters, templates, and the provenance of every character."""

from templatekit.formats.sandbox.untrusted import load_template
from templatekit.formats.template import Template

__all__ = ["Template", "load_template"]
