"""What the pages have in common: templates, how numbers and languages are written, and the one script.

template + values -> HTML with an inline script whose sha256 the content security policy names

Nothing is loaded from outside and nothing else runs: a browser refuses every script but this one. Without
the script the page is complete; with it tables can be sorted and filtered, and charts tell their numbers.
"""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmalign.core.languages import labelled, language_name
from mmalign.report.measurement import percent, row_name, shown


def render(template: str, filters: dict[str, Any] | None = None, **values: Any) -> str:
    """The page of a template in `templates/`.

    Args:
        filters: more filters, or other ones under the same name.
    """
    environment = Environment(
        loader=PackageLoader("mmalign.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "shown": shown, "thousands": "{:,}".format}
    environment.filters |= {"language": language_name, "labelled": labelled, "row_name": row_name}
    environment.filters |= filters or {}
    script = files("mmalign.report").joinpath("templates/report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # The script is ours and holds no end tag; everything else is escaped.
    page = environment.get_template(template)
    return page.render(policy=policy, script=Markup(script), **values)
