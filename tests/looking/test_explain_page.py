"""The explanation: its page in a real browser, its overlay as a video, its command."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from tests.looking.conftest import INJECTIONS, accessible, damage_end, expect, fits, page_data, until, write_clip


@pytest.fixture(scope="module")
def explanation(dover, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explanation")
    clip, page = write_clip(folder / "clip.mp4"), folder / "page.html"
    result = dover("explain", clip, "--prompt", "a square on noise", "-o", page, "--model", checkpoint, "--windows", 6)
    assert result.exit_code == 0, result.output
    return page


def test_it_shows_curves_places_moments_and_words(explanation, visit):
    page = visit(explanation)
    assert page.locator("h1").inner_text() == "clip.mp4"
    assert page.locator(".tile .value").count() == 5
    page.locator("#curves svg .mark-line path").first.wait_for(state="attached")
    assert page.locator("#curves svg .mark-line path").count() == 5
    assert page.locator(".film figure").count() == 5
    assert page.locator(".words > span").all_inner_texts()[0].startswith("a")
    assert page.evaluate("[...document.querySelectorAll('.film img')].every(i => i.naturalWidth > 0)")
    data = page_data(explanation)
    wanted = [round(data["times"][window], 2) for window in data["worst"]]
    assert [round(float(go.get_attribute("data-time")), 2) for go in page.locator(".go").all()] == wanted
    assert page.locator("footer .mono").first.inner_text() == "clip.mp4"


def test_both_players_go_together_and_to_the_worst_moment(explanation, visit):
    page = visit(explanation)
    until(page, "document.getElementById('original').readyState >= 3")
    page.evaluate("document.getElementById('original').play()")
    until(page, "document.getElementById('coloured').currentTime > 0.1")
    go = page.locator(".go").nth(3)
    go.focus()
    page.keyboard.press("Enter")
    wanted = float(go.get_attribute("data-time"))
    until(page, f"Math.abs(document.getElementById('original').currentTime - {wanted}) < 0.01")
    until(page, f"Math.abs(document.getElementById('coloured').currentTime - {wanted}) < 0.05")
    assert page.evaluate("document.getElementById('original').paused")
    page.get_by_label("Colour shows").select_option("aesthetic quality")
    until(page, "document.getElementById('coloured').readyState >= 2")
    expect(page.locator("[data-map=aesthetic]")).to_be_visible()
    page.evaluate("document.getElementById('original').playbackRate = 0.5")
    page.get_by_label("Colour shows").select_option("technical quality")
    until(page, "document.getElementById('coloured').readyState >= 2")
    assert page.evaluate("document.getElementById('coloured').playbackRate") == 0.5
    page.evaluate("document.getElementById('original').play()")
    page.evaluate("document.getElementById('coloured').currentTime = 1.5")
    until(page, "Math.abs(document.getElementById('coloured').currentTime - original.currentTime) < 0.15")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_everyone_can_read_it(explanation, visit, width, scheme):
    page = visit(explanation, width=width, scheme=scheme)
    page.locator("#curves svg").wait_for()
    assert fits(page)
    edge = page.locator("#curves").bounding_box()["x"] + page.locator("#curves").bounding_box()["width"]
    legend = [text.bounding_box() for text in page.locator("#curves .role-legend-label text").all()]
    assert len(legend) == 5
    assert all(text["x"] + text["width"] <= edge for text in legend)
    accessible(page)


def test_html_in_prompt_and_name_is_text(dover, checkpoint, tmp_path, visit):
    clip = write_clip(tmp_path / "<img src=x onerror=window.hacked=1>.mp4", frames=12)
    page_file, prompt = tmp_path / "p.html", " ".join(INJECTIONS)
    options = ["--prompt", prompt, "-o", page_file, "--model", checkpoint, "--windows", 2]
    assert dover("explain", clip, *options).exit_code == 0
    page = visit(page_file)
    page.locator("#curves svg").wait_for()
    assert page.locator("h1").inner_text() == clip.name
    assert " ".join(page.locator(".lead").inner_text().split()) == " ".join(prompt.split())
    assert page.locator("img").count() == 5


def test_the_overlay_keeps_the_files_times_and_warms_the_worst_places(small_scorer, write_video, tmp_path):
    from dataclasses import replace

    from dover_eval.looking.overlay import write_overlay
    from dover_eval.video.decode import frame_times

    times = [0, 40, 80, 300, 340, 900, 940, 980]
    path = write_video(np.full((8, 48, 64, 3), 90, np.uint8), "grey.mkv", times=times)
    found = small_scorer.explain(path, "a square", windows=2)
    maps = torch.ones(len(found.map_times), 2, 2)
    maps[:, 0, 0] = -1  # bad at the upper left
    output = tmp_path / "o.mp4"
    write_overlay(replace(found, technical_map=maps), "technical", output)
    with av.open(str(output)) as container:
        frames = list(container.decode(video=0))
    assert [round(1000 * frame.time) for frame in frames] == times
    assert frame_times(output)[1] == pytest.approx(found.duration)
    pixels = frames[3].to_ndarray(format="rgb24").astype(float)
    assert pixels[:12, :16, 0].mean() > 160
    assert pixels[-12:, -16:].mean() == pytest.approx(90, abs=6)


@pytest.mark.parametrize(("frames", "rate", "seconds"), [(4, 2, 2.0), (12, 2, 2.5), (1, 2, 0.5), (40, 12, 2.5)])
def test_a_thumbnail_lasts_as_long_as_its_clip(tmp_path, write_video, frames, rate, seconds):
    """A slow clip's last frame stays on screen until its end; a long clip is cut."""
    from dover_eval.looking.media import thumbnail
    from dover_eval.video.decode import frame_times

    clip = write_video(np.full((frames, 48, 64, 3), 90, np.uint8), rate=rate)
    (tmp_path / "t.mp4").write_bytes(thumbnail(clip).mp4)
    assert frame_times(tmp_path / "t.mp4")[1] == pytest.approx(seconds, abs=1e-3)


def test_the_command_tells_the_lowest_and_writes_the_video(dover, checkpoint, tmp_path):
    clip, output = write_clip(tmp_path / "clip.mp4", frames=12), tmp_path / "o.mp4"
    options = ["--prompt", "a square", "--model", checkpoint, "--windows", 3, "--video", output, "--map", "aesthetic"]
    options[1] = "a \x1b[2Jsquare"
    result = dover("explain", clip, *options)
    assert result.exit_code == 0, result.output
    assert "\\x1b[2Jsquare 0." in result.stdout
    assert "\x1b" not in result.stdout
    assert "words that look the most narrowly: " in result.stdout
    with av.open(str(output)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12


def test_what_was_found_is_told_even_if_no_page_can_be_made(dover, checkpoint, tmp_path):
    clip, page = damage_end(write_clip(tmp_path / "clip.mp4", frames=60)), tmp_path / "p.html"
    result = dover("explain", clip, "--prompt", "a square", "-o", page, "--model", checkpoint, "--windows", 1)
    assert result.exit_code == 1
    assert "whole clip" in result.stdout
    assert "clip.mp4: " in result.stderr
    assert not page.exists()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--prompt", " "], 2, "--prompt ' ': nothing to read in it, expected words"),
        (["--prompt", "แมวสีแดง"], 2, "knows no word of the prompt 'แมวสีแดง'"),
        (["--prompt", "a", "-o", "page.pdf"], 2, "ends in .html"),
        (["--prompt", "a", "--video", "o.gif"], 2, "ends in .mp4"),
        (["--prompt", "a", "--video", "folder.mp4"], 2, "--video folder.mp4: expected a file, found a folder"),
        (["--prompt", "a", "--map", "x"], 2, "'x' is not one of"),
        (["--prompt", "a", "--seconds", "0"], 2, "expected more than 0"),
        (["--prompt", "a", "--seconds", "nan"], 2, "expected more than 0"),
        (["--prompt", "a"], 1, "no such file"),
    ],
)
def test_what_was_not_understood_ends_with_its_reason(dover, checkpoint, tmp_path, monkeypatch, options, status, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    result = dover("explain", tmp_path / "gone.mp4", *options, "--model", checkpoint)
    assert result.exit_code == status
    assert words in " ".join(result.stderr.split())


def test_a_name_that_is_no_text_is_refused_before_the_model_runs(dover):
    result = dover("explain", "n\udcff.mp4", "--prompt", "a", "--model", "no such model")
    assert result.exit_code == 2
    assert "'n\\udcff.mp4': a name that is not UTF-8" in result.stderr
