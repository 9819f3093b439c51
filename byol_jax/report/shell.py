"""What all pages are made of: a template, its style and script, and the library that draws."""

import base64
import gzip
import importlib.resources
import json
from typing import Any

import jinja2
from markupsafe import Markup

import byol_jax
from byol_jax.errors import CheckpointError
from byol_jax.runs import paths

FILES = importlib.resources.files("byol_jax.report")


def plotly() -> bytes:
    """The JavaScript of plotly; raises ModuleNotFoundError if it is not installed."""
    return (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()


def check_output(output: paths.AnyPath) -> None:
    """Raises CheckpointError if the file of a page cannot be written."""
    if output.is_dir() or not output.parent.is_dir():
        raise CheckpointError(
            f"--output={output} cannot be written: name a file in a folder that exists, such as "
            "report.html."
        )


def fill(template: str, *, drawn: dict[str, Any], library: bytes, **values: Any) -> bytes:
    """The HTML of a page.

    Args:
      template: its name: TEMPLATE.html extends base.html, TEMPLATE.css and TEMPLATE.js are added to
        those of the base.
      drawn: what the script draws, as JSON has it.
      library: of `plotly`.
      **values: of the template; they are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "number": "{:,}".format, "data": _data_url}
    page = environment.get_template(f"{template}.html").render(
        # Text of this package, which is not escaped.
        style=Markup(_text("base.css") + _text(f"{template}.css")),
        script=Markup(_text("base.js") + _text(f"{template}.js")),
        library=_packed(library),
        drawn=_packed(json.dumps(drawn, separators=(",", ":")).encode()),
        version=byol_jax.__version__,
        **values,
    )
    return page.encode(errors="backslashreplace")  # names of files may be of another encoding


def _text(name: str) -> str:
    return FILES.joinpath(name).read_text("utf-8")


def _packed(content: bytes) -> str:
    """Base64 of gzip; the same for the same content."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _data_url(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"
