"""What the pages have in common: templates, how numbers are written, and the one script.

template + values -> HTML with an inline script whose sha256 the content security policy names
"""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmalign.core.languages import labelled
from mmalign.results.formatting import points
from mmalign.results.protocol import sentence


def render(template: str, **values: Any) -> str:
    """The page of a template in `templates/`."""
    environment = Environment(
        loader=PackageLoader("mmalign.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"thousands": "{:,}".format, "labelled": labelled, "points": points}
    environment.filters["sentence"] = sentence
    # It sorts and filters tables, and without it the page is complete. A browser refuses every other script.
    script = (files("mmalign.report") / "templates/report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # The script is ours and holds no end tag; everything else is escaped.
    values |= {"policy": policy, "script": Markup(script)}
    return environment.get_template(template).render(values)
