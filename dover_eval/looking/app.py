"""The app: drop a clip, type its prompt, look; or two clips, side by side. Gradio serves, our own pages show.

Results are the pages of `dover-eval explain`, in frames that may run their own script and reach nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from dover_eval.looking.explain_page import explain_page, pair_page
from dover_eval.prompts import prompt_fault
from dover_eval.scorer import VideoScorer
from dover_eval.video.decode import VideoError

FONTS = ("Inter", "system-ui", "sans-serif")  # the reader's own: a theme's would come from the network
KEEP_SECONDS = 3600  # uploads are removed after an hour
MOST_BYTES = "512mb"


def make_app(scorer: VideoScorer) -> gr.Blocks:
    """The app, not yet serving; one clip is scored at a time, others wait."""

    def look(video: str | None, prompt: str) -> str:
        with _asked(scorer, prompt, {"a clip": video}) as (clip,):
            return _frame(explain_page(scorer.explain(clip, prompt)), "Explanation of the clip")

    def compare(video_a: str | None, video_b: str | None, prompt: str) -> str:
        with _asked(scorer, prompt, {"clip A": video_a, "clip B": video_b}) as clips:
            found = [scorer.explain(clip, prompt) for clip in clips]
            return _frame(pair_page(*found), "Comparison of the two clips")

    with gr.Blocks(title="dover-eval", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as app:
        gr.Markdown("# dover-eval\nScores a generated video against its prompt, from 1 (bad) to 5 (excellent).")
        with gr.Tab("One clip"):
            with gr.Row():
                video = _video("Clip", "clip")
                with gr.Column():
                    prompt = gr.Textbox(label="Prompt", lines=3, max_length=4000)
                    button = gr.Button("Score", variant="primary")
            shown = gr.HTML(elem_id="explanation")
            button.click(look, [video, prompt], shown, concurrency_limit=1, concurrency_id="model")
        with gr.Tab("Two clips"):
            with gr.Row():
                video_a, video_b = _video("Clip A", "clip-a"), _video("Clip B", "clip-b")
            both = gr.Textbox(label="Prompt of both", lines=2, max_length=4000)
            second = gr.Button("Compare", variant="primary")
            pair = gr.HTML(elem_id="pair")
            second.click(compare, [video_a, video_b, both], pair, concurrency_limit=1, concurrency_id="model")
    return app


def launch_options(host: str, port: int, auth: tuple[str, str] | None) -> dict[str, Any]:
    """For `Blocks.launch`: at this address, with no tunnel and nothing from the network."""
    return {
        "server_name": host,
        "server_port": port,
        "auth": auth,
        "share": False,
        "ssr_mode": False,
        "show_error": False,
        "footer_links": [],
        "max_file_size": MOST_BYTES,
        "theme": gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=FONTS, font_mono=("ui-monospace",)),
    }


def _video(label: str, name: str) -> gr.Video:
    return gr.Video(label=label, elem_id=name, sources=["upload"], height=300, buttons=[])


@contextmanager
def _asked(scorer: VideoScorer, prompt: str, videos: dict[str, str | None]) -> Iterator[list[str]]:
    """The clips. It wraps all that reads them, pages included: a page decodes frames that scoring did not."""
    clips = [video for video in videos.values() if video]
    for name, video in videos.items():
        if not video:
            raise gr.Error(f"Drop {name} first.")
    if prompt_fault(prompt):
        raise gr.Error("Type the prompt: an alignment score needs words.")
    if fault := scorer.model.text_encoder.fault(prompt):
        raise gr.Error(html.escape(fault))
    try:
        yield clips
    except VideoError as error:
        said = str(error)
        for clip in clips:  # the reader knows it by its name, not by where it was uploaded to
            said = said.replace(clip, Path(clip).name)
        raise gr.Error(html.escape(said)) from error  # Gradio shows messages as HTML


def _frame(page: str, title: str) -> str:
    style = "width: 100%; height: 85vh; border: 1px solid #8884; border-radius: 12px"
    return f'<iframe title="{title}" sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(page)}"></iframe>'
