"""The report in a real browser, as one who reads, sorts, filters and plays; and what happens to bad results files."""

# ruff: noqa: RUF001  the pages set ranges and signs as they should be

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.looking.conftest import (
    INJECTIONS,
    accessible,
    drawn,
    expect,
    fits,
    make_row,
    make_rows,
    page_data,
    point_at,
    until,
    write_clip,
    write_rows,
)

COUNT = 70
# Whether what has the focus is what a finger would touch there.
SEEN = """(() => { const box = document.activeElement.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return document.activeElement.contains(top); })()"""


@pytest.fixture(scope="module")
def report(dover, tmp_path_factory) -> Path:
    """70 clips, four of them failed; the worst and the best can be played."""
    folder = tmp_path_factory.mktemp("report")
    rows = make_rows(COUNT)
    for i in (10, 20, 30):
        rows[i] = make_row(
            f"out/{i:03d}.mp4", f"scene {i}", [0] * 5, f"out/{i:03d}.mp4: truncated, found 3 of 9 frames"
        )
    rows[40] = make_row("out/040.mp4", "scene 40", [0] * 5, "out/040.mp4: no such file")
    for i in (0, COUNT - 1):
        write_clip(folder / f"out/{i:03d}.mp4")
    page = folder / "report.html"
    result = dover("report", write_rows(rows, folder / "wan.jsonl"), "-o", page, "--folder", folder, "--clips", 3)
    assert result.exit_code == 0, result.output
    return page


def first_row(page) -> str:
    return page.locator("#table tbody tr .name").first.inner_text()


def status(page):
    return page.locator("#table [role=status]")


def test_it_tells_what_is_in_the_file(report, visit):
    page = visit(report)
    assert page.title() == "wan.jsonl: report"
    facts = " ".join(page.locator(".facts").inner_text().split())
    assert facts == "Clips 70 Scored 66 Failed 4 Fingerprint 0123456789ab"
    page.locator("#plot-4 svg .mark-rect path").first.wait_for(state="attached")
    assert page.locator(".tile").count() == 5
    errors = page.locator("#errors details")
    assert re.sub(r"\s+", " ", errors.nth(0).inner_text()).startswith("3truncated, found 3 of 9 frames")
    assert errors.count() == 2


def test_columns_sort_both_ways_by_mouse_and_keyboard(report, visit):
    page = visit(report)
    assert first_row(page) == "out/069.mp4"
    overall = page.get_by_role("columnheader", name="Overall")
    assert overall.get_attribute("aria-sort") == "descending"
    overall.get_by_role("button").click()
    assert first_row(page) == "out/000.mp4"
    assert overall.get_attribute("aria-sort") == "ascending"
    name = page.get_by_role("columnheader", name="Clip and prompt")
    name.get_by_role("button").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert first_row(page) == "out/069.mp4"
    assert overall.get_attribute("aria-sort") is None
    page.get_by_label("Sort by").select_option("Overall, worst first")
    assert first_row(page) == "out/000.mp4"


def test_failed_clips_come_last_whichever_way_it_sorts(report, visit):
    page = visit(report)
    for order in ("Overall, worst first", "Overall, best first"):
        page.get_by_label("Sort by").select_option(order)
        page.get_by_role("button", name="Next").click()
        assert page.locator("#table tbody tr").last.locator(".wrong").inner_text().startswith("Error: ")


def test_filters_narrow_the_table_and_the_plot(report, visit):
    page = visit(report)
    expect(status(page)).to_have_text("1–50 of 70")
    page.get_by_label("Words in name, prompt or error").fill("6 SCENE")
    expect(status(page)).to_have_text("1–16 of 16 (70 in all)")
    page.get_by_label("From", exact=True).fill("4.4")
    expect(status(page)).to_have_text("1–3 of 3 (70 in all)")
    page.get_by_role("button", name="Clear").click()
    expect(status(page)).to_have_text("1–50 of 70")
    page.get_by_label("Show").select_option("failed")
    expect(status(page)).to_have_text("1–4 of 4 (70 in all)")
    page.get_by_label("Words in name, prompt or error").fill("no clip has these words")
    page.get_by_text("Nothing fits this filter.").wait_for()
    expect(status(page)).to_have_text("none (70 in all)")


def test_pages_turn(report, visit):
    page = visit(report)
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.get_by_role("button", name="Next").click()
    expect(status(page)).to_have_text("51–70 of 70")
    assert page.get_by_role("button", name="Next").is_disabled()


def test_clips_play_and_pause_by_keyboard_and_all_at_once(report, visit):
    page = visit(report)
    clip = page.get_by_role("button", name="Play 000.mp4")
    clip.focus()
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#worst video').currentTime > 0.1")
    assert clip.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#worst video').paused")
    page.get_by_role("button", name="Play all").click()
    until(page, "[...document.querySelectorAll('.reel video')].every(v => !v.paused && v.currentTime > 0)")
    page.get_by_role("button", name="Pause all").click()
    assert page.evaluate("[...document.querySelectorAll('.reel video')].every(v => v.paused)")


def test_a_clip_that_is_not_there_has_a_note_in_its_place(report, visit):
    page = visit(report)
    assert page.locator("#worst .unplayed").first.inner_text() == "no preview: no such file\n1.54"


def test_where_previews_are_too_large_the_worst_and_the_best_have_theirs(dover, tmp_path, monkeypatch):
    monkeypatch.setattr("dover_eval.looking.report.PREVIEW_BYTES", 5000)  # a clip has more than half of that
    scores = [2, 4, 3, 5, 1]
    rows = [make_row(f"{i}.mp4", "p", [score] * 5) for i, score in enumerate(scores)]
    for row in rows:
        write_clip(tmp_path / row["video_name"])
    results, output = write_rows(rows, tmp_path / "r.jsonl"), tmp_path / "r.html"
    assert dover("report", results, "-o", output, "--folder", tmp_path).exit_code == 0
    previews = page_data(output)["previews"]
    assert sorted(scores[int(i)] for i, preview in previews.items() if "mp4" in preview) == [1, 5]
    assert previews["0"] == {"note": "left out: the page's previews are full"}


def test_worst_and_best_follow_the_score(report, visit):
    page = visit(report)
    names = page.locator("#worst .name")
    assert names.all_inner_texts() == ["000.mp4", "001.mp4", "002.mp4"]
    page.get_by_label("By score", exact=True).select_option("Temporal")
    assert names.all_inner_texts() != ["000.mp4", "001.mp4", "002.mp4"]
    shown = [float(text) for text in page.locator("#worst .badge").all_inner_texts()]
    assert shown == sorted(shown)


def test_any_score_against_any_other(report, visit):
    page = visit(report)
    page.wait_for_selector("#scatter canvas")
    assert drawn(page, "#scatter canvas") > 1000
    page.get_by_label("Across").select_option("Aesthetic")
    page.get_by_label("Up").select_option("Overall")
    assert page.locator("#against-text").inner_text().startswith("Overall against Aesthetic. Spearman's rank")
    assert page.locator("#scatter").get_attribute("aria-label").startswith("Scatter plot of Overall against Aesthetic")


def test_a_point_that_is_clicked_is_the_one_in_the_table_whatever_was_filtered(dover, visit, tmp_path):
    """Also of two rows of one file; and its prompt, however long and from whichever side, stays in bounds."""
    rows = [make_row("one.mp4", "שלום " * 900, [score] * 5) for score in (1.1, 4.9, 3)]
    output = tmp_path / "r.html"
    assert dover("report", write_rows(rows, tmp_path / "r.jsonl"), "-o", output, "--clips", 0).exit_code == 0
    page = visit(output)
    page.wait_for_selector("#scatter canvas")
    page.get_by_label("To", exact=True).fill("2")
    expect(status(page)).to_have_text("1–1 of 1 (3 in all)")
    point_at(page, "#scatter canvas")  # the uppermost
    tip = page.locator(".tip").bounding_box()
    assert tip["y"] >= 8
    assert tip["y"] + tip["height"] <= 900
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#table tbody .strong")).to_have_text(["4.90"])
    prompt = page.locator("#table tbody .prompt")
    assert prompt.bounding_box()["height"] < 100
    assert prompt.evaluate("node => getComputedStyle(node).direction") == "rtl"
    page.get_by_role("button", name="Clear").click()
    expect(status(page)).to_have_text("1–3 of 3")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_everyone_can_read_it(report, visit, width, scheme):
    page = visit(report, width=width, scheme=scheme)
    page.wait_for_selector("#scatter canvas")
    assert fits(page)
    page.get_by_role("button", name="Clear").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(SEEN)
    accessible(page)


def test_the_plots_follow_the_readers_colours(report, visit):
    page = visit(report)
    bar = page.locator("#plot-4 svg .mark-rect path").first
    before = bar.get_attribute("fill")
    page.emulate_media(color_scheme="dark")
    expect(bar).not_to_have_attribute("fill", before)
    page.emulate_media(media="print")  # on paper, which is white
    expect(bar).to_have_attribute("fill", before)
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 28, 32)"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_html_in_names_prompts_and_errors_is_text(dover, visit, tmp_path, suffix):
    rows = [make_row(f"{text}.mp4", text, [2, 2, 2, 2, 2 + i / 10]) for i, text in enumerate(INJECTIONS)]
    rows += [make_row(f"{text}.avi", text, [0] * 5, text) for text in INJECTIONS]
    results = write_rows(rows, tmp_path / f"<img src=x onerror=hacked=1>{suffix}")
    output = tmp_path / "r.html"
    assert dover("report", results, "-o", output).exit_code == 0
    page = visit(output)
    page.wait_for_selector("#scatter canvas")
    shown = page.locator("#table").inner_text()
    for text in INJECTIONS:
        assert " ".join(text.split()) in " ".join(shown.split())
    assert page.locator("img, iframe, object, #table script, #errors script").count() == 0
    assert page.locator("h1").inner_text() == results.name
    page.locator("#scatter canvas").hover()
    for details in page.locator("#errors details").all():
        details.locator("summary").click()


def test_a_file_of_errors_alone_says_so(dover, visit, tmp_path):
    rows = [make_row(f"{i}.mp4", "p", [0] * 5, f"{i}.mp4: no such file") for i in range(3)]
    output = tmp_path / "r.html"
    assert dover("report", write_rows(rows, tmp_path / "r.csv"), "-o", output).exit_code == 0
    page = visit(output)
    assert "No clip was scored. Every one of the 3 rows is an error" in page.get_by_role("alert").inner_text()
    expect(status(page)).to_have_text("1–3 of 3")
    accessible(page)


def test_one_clip_makes_a_page(dover, visit, tmp_path):
    output = tmp_path / "r.html"
    assert dover("report", write_rows(make_rows(1), tmp_path / "r.parquet"), "-o", output).exit_code == 0
    page = visit(output)
    assert page.locator("#worst li").count() == 1
    assert page.locator("#best li").count() == 0
    expect(page.get_by_role("heading", name="Best", exact=True)).to_be_hidden()


def test_the_page_is_written_whole_or_not_at_all(report):
    assert [path.name for path in report.parent.glob(".*")] == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.jsonl", "", "a table without rows"),
        ("r.jsonl", '{"video_name": "a.mp4", "Pro', "line 1: no JSON (cut off?)"),
        ("r.jsonl", '{"video_name": "a.mp4"}\n', "Prompt, Traditional, Alignment"),
        ("r.csv", "video_name,Prompt,Overall\na.mp4,x,3\n", "Traditional, Alignment, Aesthetic, Temporal, error"),
        ("r.csv", "", "a table without rows"),
        (
            "r.jsonl",
            json.dumps(make_row("a.mp4", "half a pair \ud83d", [3] * 5)),
            "line 1: Prompt 'half a pair \\ud83d' is not UTF-8",
        ),
        ("r.jsonl", json.dumps(make_row("\ud83d.mp4", "p", [3] * 5)), "line 1: video_name '\\ud83d.mp4' is not UTF-8"),
        ("r\udcff.jsonl", "", "a name that is not UTF-8"),
        ("r.parquet", "PAR1 and then nothing", "no whole Parquet file"),
        ("r.parquet", "", "no whole Parquet file"),
        ("r.xlsx", "x", "expected a .csv, .jsonl, .json or .parquet table"),
        ("gone.jsonl", None, "cannot be read"),
    ],
)
def test_results_that_cannot_be_used_are_refused_with_the_reason(dover, tmp_path, name, content, words):
    path, output = tmp_path / name, tmp_path / "r.html"
    if content is not None:
        path.write_text(content)
    result = dover("report", path, "-o", output)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert (str(path) if path.name.isascii() else repr(str(path))) in result.stderr
    assert not output.exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_file_cut_anywhere_is_refused(dover, tmp_path, suffix, share):
    path = write_rows(make_rows(40), tmp_path / f"r{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share) - 3])
    result = dover("report", path, "-o", tmp_path / "r.html")
    assert result.exit_code == 2, result.output
    assert str(path) in result.stderr


def test_rows_that_contradict_themselves_are_refused(dover, tmp_path):
    for change, words in (
        ({"Overall": 9.0}, "line 2: expected Overall from 1 to 5, found 9.0"),
        ({"Temporal": None}, "line 2: expected a number in Temporal"),
        ({"fingerprint": "ba9876543210"}, "scores of 2 fingerprints (0123456789ab, ba9876543210)"),
    ):
        rows = make_rows(3)
        rows[1] |= change
        result = dover("report", write_rows(rows, tmp_path / "r.jsonl"), "-o", tmp_path / "r.html")
        assert result.exit_code == 2
        assert words in result.stderr


def test_where_the_page_goes_is_checked_first(dover, tmp_path):
    path = write_rows(make_rows(2), tmp_path / "r.jsonl")
    assert "ends in .html" in dover("report", path, "-o", tmp_path / "r.pdf").stderr
    assert "there is no folder" in dover("report", path, "-o", tmp_path / "no" / "r.html").stderr
    result = dover("report", path, "-o", tmp_path / "r.html", "--folder", tmp_path / "no")
    assert result.exit_code == 2
    assert "does not exist" in " ".join(result.stderr.split())


def test_a_page_that_cannot_be_written_is_said_in_a_line(dover, tmp_path):
    """/proc takes no files from anyone, root included."""
    result = dover("report", write_rows(make_rows(2), tmp_path / "wan.jsonl"), "-o", "/proc/report.html")
    assert result.exit_code == 1
    assert "/proc/report.html cannot be written" in " ".join(result.stderr.split())
