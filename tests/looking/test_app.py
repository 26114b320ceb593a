"""The app as a process of its own, used in a real browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import free_port
from tests.looking.conftest import expect, write_clip

if os.environ.get("CI") != "true":
    pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def address(checkpoint, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "dover_eval", "app", "--port", str(port), "--model", checkpoint]
    environment = os.environ | {"TMPDIR": str(folder)}
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=file, stderr=file, env=environment)
    try:
        deadline = time.monotonic() + 280
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
        assert list(folder.glob("dover-eval-app-*"))
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        status = process.wait(20)
    assert status == 128 + signal.SIGTERM
    assert not list(folder.glob("dover-eval-app-*")), "what was dropped into it outlives the app"


def upload(page, name: str, clip) -> None:
    """Into the field of that name, until its clip is to be seen."""
    page.locator(f"#{name} input[type=file]").set_input_files(clip)
    expect(page.locator(f"#{name} video")).to_be_visible()


def test_a_clip_and_a_prompt_become_an_explanation(address, visit, tmp_path):
    page = visit(address)
    prompt = "a square <img src=x onerror=window.hacked=1> ${7*7} {{7*7}} </script>"
    upload(page, "clip", write_clip(tmp_path / "<svg onload=window.hacked=1>.mp4"))
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Score").click()
    inside = page.frame_locator("#explanation iframe")
    inside.locator("#curves svg").wait_for()
    assert inside.locator(".lead").inner_text() == prompt
    assert all(1 <= float(text) <= 5 for text in inside.locator(".tile .value").all_inner_texts())
    assert page.locator("#explanation iframe").get_attribute("sandbox") == "allow-scripts"


def test_two_clips_are_compared(address, visit, tmp_path):
    page = visit(address)
    page.get_by_role("tab", name="Two clips").click()
    upload(page, "clip-a", write_clip(tmp_path / "one.mp4"))
    upload(page, "clip-b", write_clip(tmp_path / "two.mp4", frames=18))
    page.get_by_label("Prompt of both").fill("a square")
    page.get_by_role("button", name="Compare").click()
    inside = page.frame_locator("#pair iframe")
    inside.locator("#curves svg").wait_for()
    assert inside.locator("h1").inner_text() == "two.mp4 against one.mp4"
    assert inside.get_by_role("row").count() == 6
    inside.get_by_role("button", name="Play both").click()
    expect(inside.get_by_role("button", name="Pause both")).to_be_visible()


def test_what_is_missing_or_broken_is_said(address, visit, tmp_path):
    page = visit(address)
    page.get_by_role("button", name="Score").click()
    expect(page.get_by_text("Drop a clip first.")).to_be_visible()
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    page.locator("#clip input[type=file]").set_input_files(broken)
    page.get_by_label("Prompt", exact=True).fill("a square")
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Score").click()
    expect(page.get_by_text(re.compile("broken.mp4: cannot be decoded as a video"))).to_be_visible()


def test_damage_that_only_the_page_meets_is_said(small_scorer, tmp_path, monkeypatch):
    """A page shows every frame, and scores need some."""
    import gradio as gr

    from dover_eval import VideoError
    from dover_eval.looking.app import make_app

    def damaged(*found):
        raise VideoError(f"{found[-1].source}: damaged <b>")

    for name in ("explain_page", "pair_page"):
        monkeypatch.setattr(f"dover_eval.looking.app.{name}", damaged)
    clip = str(write_clip(tmp_path / "clip.mp4", frames=12))
    look, compare = (step.fn for step in make_app(small_scorer).fns.values() if step.inputs)
    for shown in (lambda: look(clip, "a square"), lambda: compare(clip, clip, "a square")):
        with pytest.raises(gr.Error) as said:
            shown()
        assert said.value.message == "clip.mp4: damaged &lt;b&gt;"


def test_it_listens_on_loopback_alone(address):
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; tells the address by which others reach this machine
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError, match="refused"), socket.create_connection((own, port), timeout=5):
        pass


def test_uploads_lie_in_a_folder_of_this_user_and_go_with_the_app(dover, checkpoint, monkeypatch):
    import gradio as gr
    from gradio.utils import get_upload_folder

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that it is put back
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    modes = []
    monkeypatch.setattr(
        gr.Blocks, "launch", lambda *_, **__: modes.append(os.stat(get_upload_folder()).st_mode & 0o777)
    )
    result = dover("app", "--model", checkpoint)
    assert (result.exit_code, modes) == (0, [0o700])
    assert not os.path.exists(get_upload_folder())


def test_a_taken_port_is_a_failure_with_its_reason(dover, checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = dover("app", "--port", port, "--model", checkpoint)
    assert result.exit_code == 1
    assert f"nothing listens on 127.0.0.1 port {port}" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is open to others: give --auth NAME:PASSWORD"),
        (["--auth", "name"], "expected NAME:PASSWORD"),
    ],
)
def test_others_are_let_in_with_a_password_alone(dover, options, words):
    result = dover("app", *options)
    assert result.exit_code == 2
    assert words in result.stderr
