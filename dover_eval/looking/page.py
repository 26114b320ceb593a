"""One self-contained page: a Jinja2 template with everything inlined, and a policy that lets nothing else in.

Plots are Vega-Lite, whose whole bundle comes offline from the `vl-convert-python` wheel and takes 0.9 MB of a page;
Plotly's takes 4.7 MB. Its expression interpreter stands in for `eval`, so that the page's policy can forbid that too.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dover_eval.replacing import replacing

ASSETS = resources.files("dover_eval.looking") / "assets"


def render_page(template: str, *, title: str, data: Any, scripts: tuple[str, ...], **context: Any) -> str:
    """The page of `template`, as text.

    Every value of `context` is escaped; `data`, fit for JSON, becomes `dover.data` in the page, escaped for the place
    where it stands. `scripts` are names of files in `assets`, run in their order after Vega.
    """
    inlined = [_vega(), *(_asset(name) for name in scripts)]
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{_digest(code)}'" for code in inlined),  # no other code runs
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "media-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            data=data,
            style=Markup(_asset("page.css")),
            scripts=[Markup(code) for code in inlined],
            policy="; ".join(f"{name} {value}" for name, value in policy.items()),
            **context,
        )
    )


def write_page(html: str, path: Path) -> None:
    """The file appears whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(html, encoding="utf-8", newline="")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default
    # Inside a script element only this ends it.
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
