"""Offers the bundled templates: every `.jinja` file of this folder, by its name."""

from collections.abc import Iterable
from pathlib import Path

from templatekit.hooks.contracts import TemplateFile, template_files
from templatekit.hooks.specs import hookimpl


@hookimpl
def templatekit_templates() -> Iterable[TemplateFile]:
    """Offer every bundled template."""
    return template_files(Path(__file__).parent)
