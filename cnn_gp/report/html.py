"""A page of the report as one HTML file, which holds its figures and needs no other file and no network."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .page import Block

try:
    import jinja2
    from markupsafe import Markup, escape
except ImportError as error:
    raise UserError("The HTML page needs Jinja2: install the package with its [figures] extra.") from error


def as_html(title: str, blocks: Sequence[Block], figures: Path) -> str:
    """
    The page as HTML.

    :param figures: the folder with the pictures' PNG files.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": _code,
        "data_url": _data_url,
        "figure": lambda name: _data_url((figures / f"{name}.png").read_bytes()),
        "kind": lambda block: type(block).__name__,
    }
    return environment.get_template("report.html.jinja").render(title=title, blocks=blocks)


def _code(text: str) -> Markup:
    """What is between backquotes as code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
