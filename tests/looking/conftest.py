"""Results as a user has them, and a real browser that fails the test for any error and any request."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dover_eval.cli import app
from dover_eval.opinion import ASPECTS, SCORE_NAMES

PATIENCE = 120_000  # milliseconds: a browser on a busy machine is slow, and nothing here measures it
INJECTIONS = (
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "<!--<script>window.hacked=1",
    '"><svg onload=window.hacked=1>',
    "{{ 7 * 7 }}${7*7}{% raw %}",
    "javascript:window.hacked=1",
    "a\u2028b \u202etxet \\u003c &lt;b&gt;",
)


def make_row(name: str, prompt: str, scores: list[float], error: str | None = None) -> dict[str, Any]:
    """A row as `VideoScores.to_dicts` gives it."""
    row: dict[str, Any] = {"video_name": name, "Prompt": prompt}
    row |= {score: None if error else value for score, value in zip(SCORE_NAMES, scores, strict=True)}
    row |= dict.fromkeys(("aesthetic_score", "technical_score"), None if error else 0.5)
    row |= {f"weight_{score}": None if error else 0.25 for score in ASPECTS}
    return row | {"error": error, "fingerprint": "0123456789ab"}


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose Overall rises with their number, from 1.5 to 4.5."""
    rng = np.random.default_rng(seed)
    aspects = rng.uniform(1.2, 4.8, (count, 4)).round(3)
    overall = np.linspace(1.5, 4.5, count).round(3)
    return [make_row(f"out/{i:03d}.mp4", f"scene {i}", [*aspects[i].tolist(), overall[i].item()]) for i in range(count)]


def write_rows(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def dover() -> Callable[..., Any]:
    """A command as it is typed."""
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


def write_clip(path: Path, frames: int = 24, rate: int = 12) -> Path:
    """A real file: a bright square that moves over noise."""
    from dover_eval.looking.media import write_mp4

    image = np.random.default_rng(0).integers(0, 120, (48, 64, 3), dtype=np.uint8)
    moving = []
    for t in range(frames):
        frame = image.copy()
        frame[16:32, 2 * t : 2 * t + 12] = 250
        moving.append((frame, t / rate))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(str(path), moving)
    return path


def damage_end(clip: Path) -> Path:
    """Makes the last frame one that cannot be decoded; those before do not need it."""
    import av

    with av.open(str(clip)) as container:
        last = max((packet for packet in container.demux(video=0) if packet.size), key=lambda packet: packet.pts)
    content = bytearray(clip.read_bytes())
    content[last.pos + 8 : last.pos + last.size] = bytes(last.size - 8)
    clip.write_bytes(content)
    return clip


def page_data(page: Path) -> Any:
    """What a page has for its scripts."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "no chromium on the path: `make browser`, as root, installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        sync_api.expect.set_options(timeout=PATIENCE)
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Opens a page by its file or address; when the test ends it must have logged nothing, raised nothing, asked for
    nothing but itself, and run nothing that was smuggled in."""
    told: list[str] = []
    contexts = []

    def open_page(where: Path | str, *, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **options
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        address = where.as_uri() if isinstance(where, Path) else where
        home = address if isinstance(where, Path) else address.rstrip("/")
        # Gradio's own front end warns about nothing; our files may not.
        kinds = ("error", "warning") if isinstance(where, Path) else ("error",)
        page.on("console", lambda m: told.append(f"{m.type}: {m.text}") if m.type in kinds else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(f"dialog: {dialog.message}"))
        own = (home, "blob:", "data:", "about:srcdoc")
        page.on("request", lambda r: None if r.url.startswith(own) else told.append(f"request: {r.url}"))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            for frame in page.frames:
                if frame.evaluate("typeof window.hacked") != "undefined":
                    told.append(f"ran smuggled code in {frame.url}")
        context.close()
    assert told == []


def expect(locator: Any) -> Any:
    """Playwright's assertions, which wait."""
    from playwright.sync_api import expect as playwright_expect

    return playwright_expect(locator)


def accessible(page: Any) -> None:
    """Fails with axe-core's own report, if it finds anything at all."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def until(page: Any, script: str) -> None:
    """Waits until the script is true; Playwright's own way needs `eval`, which our pages forbid."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(script):
        assert time.monotonic() < deadline, f"never came true: {script}"
        page.wait_for_timeout(50)


def fits(page: Any) -> bool:
    """Whether nothing sticks out sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def point_at(page: Any, selector: str) -> None:
    """Moves the mouse onto the first point of a scatter plot: the axes and the grid are opaque, and points are not."""
    script = """selector => { const c = document.querySelector(selector), box = c.getBoundingClientRect();
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      const point = (x, y) => { const alpha = d[4 * (y * c.width + x) + 3]; return alpha > 150 && alpha < 250; };
      for (let y = 4; y < c.height - 4; y++) for (let x = 4; x < c.width - 4; x++)
        if (point(x, y) && point(x - 2, y) && point(x + 2, y) && point(x, y + 2))
          return [box.x + x / c.width * box.width, box.y + (y + 1) / c.height * box.height]; }"""
    page.locator(selector).scroll_into_view_if_needed()
    page.mouse.move(*page.evaluate(script, selector))
    page.locator(".tip").wait_for(state="attached")


def drawn(page: Any, selector: str) -> int:
    """How many pixels of a canvas carry anything."""
    script = """selector => { const c = document.querySelector(selector);
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; }"""
    return page.evaluate(script, selector)
