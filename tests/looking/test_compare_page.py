"""The comparison in a real browser."""

# ruff: noqa: RUF001  the pages set ranges and signs as they should be

from __future__ import annotations

import pytest

from tests.looking.conftest import (
    INJECTIONS,
    accessible,
    expect,
    fits,
    make_row,
    make_rows,
    page_data,
    until,
    write_clip,
    write_rows,
)
from tests.looking.test_compare import shifted


@pytest.fixture(scope="module")
def comparison(dover, tmp_path_factory):
    """Sixty prompts; B's Alignment is higher, and its clip of scene 5 much worse."""
    rows = make_rows(60)
    moved = shifted(rows, Alignment=0.1)
    moved[5]["Overall"] -= 0.7
    root = tmp_path_factory.mktemp("comparison")
    for name, all_rows in (("base", rows), ("tuned", moved)):
        write_clip(root / name / all_rows[5]["video_name"])
    page = root / "page.html"
    a, b = write_rows(rows, root / "base.jsonl"), write_rows(moved, root / "tuned.jsonl")
    folders = ["--folder-a", root / "base", "--folder-b", root / "tuned"]
    result = dover("compare", a, b, "-o", page, *folders, "--prompts", 2)
    assert result.exit_code == 0, result.output
    return page


def test_it_says_in_words_and_figures_what_differs(comparison, visit):
    page = visit(comparison)
    assert page.locator("h1").inner_text() == "tuned.jsonl against base.jsonl"
    assert "Alignment rises by 0.100. The other scores are not told apart." in page.locator(".lead").inner_text()
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="Alignment"))
    assert "+0.100" in row.inner_text()
    assert "≤ 0.001" in row.inner_text()
    assert "60, 0, 0" in row.inner_text()
    page.locator("#forest svg").wait_for()


def test_the_prompts_that_differ_most_play_side_by_side(comparison, visit):
    page = visit(comparison)
    first = page.locator(".pair").first
    assert first.locator(".prompt").inner_text() == "scene 5"
    assert first.locator(".worse").inner_text() == "Overall −0.70"
    page.get_by_role("button", name="Play all").click()
    until(page, "[...document.querySelectorAll('.pair video')].filter(v => v.currentTime > 0.1).length === 2")
    page.get_by_label("By score", exact=True).select_option("Alignment")
    expect(page.get_by_role("button", name="Play all")).to_be_visible()


def test_the_clip_that_is_shown_has_its_own_scores(dover, tmp_path, monkeypatch):
    """Of three the one nearest to their mean; and the room for previews is one for both sides."""
    monkeypatch.setattr("dover_eval.looking.report.PREVIEW_BYTES", 1)
    a = [make_row(f"{i}.mp4", "p", [score] * 5) for i, score in enumerate((1.2, 5, 3.3))]
    a.append(make_row("q.mp4", "q", [3] * 5))
    b = [make_row("2.mp4", "p", [4] * 5), make_row("q.mp4", "q", [3] * 5)]
    write_clip(tmp_path / "2.mp4")
    files, output = [write_rows(a, tmp_path / "a.jsonl"), write_rows(b, tmp_path / "b.jsonl")], tmp_path / "p.html"
    result = dover("compare", *files, "-o", output, "--folder-a", tmp_path, "--folder-b", tmp_path)
    assert result.exit_code == 0, result.output
    data = page_data(output)
    assert data["videos"][0] == ["2.mp4", "q.mp4"]
    assert data["scores"][0][0][0] == pytest.approx(3.167, abs=1e-3)
    assert data["previews"][0]["0"]["scores"] == [3.3] * 5
    assert "mp4" in data["previews"][0]["0"]
    assert data["previews"][1]["0"]["note"] == "left out: the page's previews are full"


def test_prompts_sort_and_filter(comparison, visit):
    page = visit(comparison)
    names = page.locator("#table tbody .name")
    assert names.first.inner_text() == "scene 5"
    page.get_by_role("columnheader", name="Prompt and clips").get_by_role("button").click()
    assert names.all_inner_texts()[:3] == ["scene 0", "scene 1", "scene 2"]
    page.get_by_label("Words").fill("scene 42")
    expect(names).to_have_count(1)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (700, "light"), (375, "dark"), (320, "light")])
def test_everyone_can_read_it(comparison, visit, width, scheme):
    page = visit(comparison, width=width, scheme=scheme)
    page.locator("#forest svg").wait_for()
    assert fits(page)
    assert page.evaluate("[...document.querySelectorAll('#table td')].every(c => c.scrollWidth <= c.clientWidth)")
    accessible(page)


def test_html_in_names_and_prompts_is_text(dover, visit, tmp_path):
    rows = [make_row(f"{text}.mp4", text, [2, 2, 2, 2, 2 + i / 10]) for i, text in enumerate(INJECTIONS)]
    other = [
        *shifted(rows, Overall=0.3)[1:],
        make_row("x.mp4", "only in b <img src=x onerror=window.hacked=1>", [2] * 5),
    ]
    a = write_rows(rows, tmp_path / "<svg onload=window.hacked=1>.jsonl")
    output = tmp_path / "p.html"
    assert dover("compare", a, write_rows(other, tmp_path / "b.jsonl"), "-o", output).exit_code == 0
    page = visit(output)
    page.locator("#forest svg").wait_for()
    shown = " ".join(page.locator("body").inner_text().split())
    for text in INJECTIONS:
        assert " ".join(text.split()) in shown
    assert page.locator("img, iframe, object").count() == 0
    assert a.name in page.locator("h1").inner_text()
