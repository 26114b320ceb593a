"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dover_eval.evaluation.compare import Comparison, chance
from dover_eval.evaluation.metrics import LEVEL
from dover_eval.looking.page import render_page
from dover_eval.looking.report import columns, in_turn, make_previews
from dover_eval.opinion import SCORE_NAMES
from dover_eval.wording import plural


def compare_page(
    comparison: Comparison,
    *,
    prompts: int = 6,
    folders: tuple[Path | None, Path | None] = (None, None),
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """The page, as HTML text that needs nothing else; `prompts` is how many are shown side by side, by each score."""
    c = comparison
    largest = [c.largest(i, prompts) for i in range(len(SCORE_NAMES))]
    clips = [c.shown_clips(i) for i in range(len(c.prompts))]
    both = [(i, side) for i in in_turn(largest) for side in (0, 1)]
    paths = [(folders[side] or Path()) / (c.a, c.b)[side].videos[clips[i][side]] for i, side in both]
    previews: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for (i, side), preview in zip(both, make_previews(paths, progress), strict=True):
        previews[side][str(i)] = preview | {"scores": columns((c.a, c.b)[side].scores[clips[i][side]])}
    data = {
        "names": SCORE_NAMES,
        "files": c.names,
        "prompts": c.prompts,
        "videos": [[c.a.videos[a] for a, _ in clips], [c.b.videos[b] for _, b in clips]],
        "clips": [[len(own) for own in rows] for rows in (c.clips_a, c.clips_b)],
        "scores": [[columns(s[:, i]) for i in range(len(SCORE_NAMES))] for s in (c.scores_a, c.scores_b)],
        "largest": largest,
        "previews": previews,
        "differences": [
            {
                "name": d.name,
                "mean": d.difference.value,
                "low": d.difference.low,
                "high": d.difference.high,
                "shown": d.shown,
            }
            for d in c.differences
        ],
    }
    return render_page(
        "compare.html",
        title=f"{c.names[0]} and {c.names[1]}: comparison",
        data=data,
        scripts=("common.js", "table.js", "compare.js"),
        kind="comparison",
        c=c,
        names=SCORE_NAMES,
        chance=chance,
        level=round(100 * LEVEL),
        remarks=remarks(c),
    )


def remarks(c: Comparison) -> list[str]:
    """What a reader must know beside the figures: everything that is not in them."""
    listed = lambda prompts: ", ".join(f'"{prompt}"' for prompt in prompts[:3])
    some = lambda prompts: listed(prompts) + (" and others" if len(prompts) > 3 else "")
    said = []
    for name, prompts in zip(c.names, (c.only_a, c.only_b), strict=True):
        if prompts:
            said.append(f"{plural(len(prompts), 'prompt')} only in {name}, not compared: {some(prompts)}")
    if c.failed:
        few = "without a scored clip in one file, not compared"
        said.append(f"{plural(len(c.failed), 'prompt')} {few}: {some(c.failed)}")
    for name, count in zip(c.names, c.left_out, strict=True):
        if count:
            said.append(f"{plural(count, 'failed clip')} of {name} left out of its prompt's mean")
    if c.repeated:
        said.append(f"{plural(c.repeated, 'prompt')} with several clips: their means are compared")
    return said
