"""The Jinja templates of the reports, beside this file."""

from __future__ import annotations

import jinja2


def environment(autoescape: bool) -> jinja2.Environment:
    """Templates of this folder. A name that a template misspells is an error, never an empty string."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("compress.reporting", "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
