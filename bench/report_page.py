"""A report of many rows in a real browser: its size, and how long it takes to open, to sort and to filter.

    python -m bench.report_page [--rows 10000] [--repeats 5]

Needs the extra `report`, Playwright and Chromium (`make browser`). Scores are random; every clip is a real file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import environment, results_file, save
from dover_eval.opinion import SCORE_NAMES

CLIPS = Path(__file__).parent.parent / "examples" / "clips"
# Until everything is drawn, in the page's own clock, which starts when it is asked for.
OPENED = """() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"""
# From the click until the next frame is painted; the page must show another first row.
SORTED = """async () => {
  const button = [...document.querySelectorAll('#table th button')].at(-1);
  const first = () => document.querySelector('#table tbody .name').textContent;
  const before = first(), start = performance.now();
  button.click();
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  if (first() === before) throw new Error('the table did not sort');
  return performance.now() - start;
}"""
FILTERED = """async () => {
  const field = document.getElementById('words'), status = document.querySelector('#table [role=status]');
  const before = status.textContent, start = performance.now();
  field.value = field.value ? '' : 'scene 12';
  field.dispatchEvent(new Event('input', { bubbles: true }));
  while (status.textContent === before) await new Promise(done => setTimeout(done, 1));
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""


STEPS = {"open": OPENED, "sort": SORTED, "filter": FILTERED}


def write_rows(path: Path, count: int) -> None:
    """A results file; its clips are the examples in turn, under names of their own."""
    rng = np.random.default_rng(0)
    sources = sorted(CLIPS.glob("*.mp4"))
    scores = rng.normal((3.4, 3.8, 3.1, 3.6), 0.6, (count, 4)).clip(1, 5)
    folder = path.parent / "clips"
    folder.mkdir()
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            clip = folder / f"{i:06d}.mp4"
            clip.symlink_to(sources[i % len(sources)])
            values = dict(zip(SCORE_NAMES, [*scores[i].tolist(), float(scores[i].mean())], strict=True))
            prompt = f"a prompt of usual length about a scene, in sharp detail and smooth motion, scene {i}"
            row = {"video_name": str(clip), "Prompt": prompt} | values | {"error": None, "fingerprint": "0" * 12}
            file.write(json.dumps(row) + "\n")


def measure(page_file: Path, repeats: int) -> dict[str, Any]:
    """Seconds, each of `repeats` in a fresh page, and of these the CPU time of the page's own thread.

    The page must log no error. On a busy machine the CPU time is what tells.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("no chromium on the path: `make browser`, as root, installs it")
    times: dict[str, list[float]] = {f"{name}{kind}": [] for name in STEPS for kind in ("", "_cpu")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        version = browser.version
        for _ in range(repeats):
            page = browser.new_page()
            errors: list[str] = []
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            spent = 0.0
            for name, script in STEPS.items():
                if name == "open":
                    page.goto(page_file.as_uri())
                    page.wait_for_selector("#scatter canvas")
                times[name].append(page.evaluate(script) / 1000)
                metrics = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
                times[f"{name}_cpu"].append(metrics["TaskDuration"] - spent)
                spent = metrics["TaskDuration"]
            if errors:
                raise SystemExit(f"the page failed: {errors}")
            page.close()
        browser.close()
    return {"chromium": version} | {f"{name}_s": [round(value, 4) for value in found] for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=20, help="worst and best clips by each score")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--note", default="", help="what else ran on the machine, say")
    arguments = parser.parse_args()

    from dover_eval.looking.page import write_page
    from dover_eval.looking.report import report_page
    from dover_eval.results import read_results

    facts = environment("cpu", arguments.note)
    with tempfile.TemporaryDirectory() as folder:
        results, page_file = Path(folder) / "results.jsonl", Path(folder) / "report.html"
        write_rows(results, arguments.rows)
        start = time.perf_counter()
        table = read_results(results)
        read = time.perf_counter()
        write_page(report_page(table, clips=arguments.clips), page_file)
        made = time.perf_counter()
        found = measure(page_file, arguments.repeats)
        page = page_file.read_text(encoding="utf-8")
        record = facts | {
            "rows": arguments.rows,
            "thumbnails": page.count('"mp4":'),
            "page_mb": round(page_file.stat().st_size / 1e6, 2),
            "read_s": round(read - start, 3),
            "make_s": round(made - read, 3),
        }
    medians = {f"{name[:-2]}_median_s": statistics.median(found[name]) for name in found if name.endswith("_s")}
    record |= medians | found
    path = results_file("cpu", f"report-page-{arguments.rows}-rows")
    save(path, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
