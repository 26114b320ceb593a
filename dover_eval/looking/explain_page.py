"""The page of an explanation."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from dover_eval.explain import Explanation
from dover_eval.looking.media import as_image, webp, write_mp4
from dover_eval.looking.overlay import MAPS, Overlay, overlay_frames
from dover_eval.looking.page import render_page

PLAYER = (360, 480)  # most height and width of the page's videos
PLAYER_FRAMES = 400  # of each video at most: a long clip is shown with fewer frames a second


def explain_page(explanation: Explanation) -> str:
    """The page, as HTML text that needs nothing else. Reads the clip again; raises VideoError if it is gone."""
    e = explanation
    overlays = {name: Overlay.of(e, name) for name in MAPS}
    pictures = [webp(as_image(e.frames[i])) for i in e.worst.values()]
    data = {
        "names": e.names,
        "duration": e.duration,
        "times": [round(time, 4) for time in e.times],
        "values": [[round(value, 3) for value in row] for row in e.values.T.tolist()],
        "worst": list(e.worst.values()),
        "videos": _videos(e, overlays),
    }
    read = [word.focus for word in e.words if word.focus is not None]
    least, most = min(read, default=0.0), max(read, default=0.0)
    return render_page(
        "explain.html",
        title=f"{Path(e.source).name}: explanation",
        data=data,
        scripts=("common.js", "explain.js"),
        kind="explanation",
        e=e,
        name=Path(e.source).name,
        scores=dict(zip(e.names, e.scores.tolist(), strict=True)),
        worst=[
            (name, e.values[i, column].item(), e.times[i], pictures[column])
            for column, (name, i) in enumerate(e.worst.items())
        ],
        words=[
            (word, 0.0 if word.focus is None else (word.focus - least) / max(most - least, 1e-9)) for word in e.words
        ],
        overlays=overlays,
        grid=tuple(e.technical_map.shape[1:]),
    )


def pair_page(a: Explanation, b: Explanation) -> str:
    """Two clips of one prompt side by side, as HTML text that needs nothing else."""
    data = {
        "names": a.names,
        "times": [e.times for e in (a, b)],
        "values": [[[round(value, 3) for value in row] for row in e.values.T.tolist()] for e in (a, b)],
        "videos": [_videos(e, {name: Overlay.of(e, name) for name in MAPS}) for e in (a, b)],
    }
    names = [Path(e.source).name for e in (a, b)]
    return render_page(
        "pair.html",
        title=f"{names[1]} and {names[0]}",
        data=data,
        scripts=("common.js", "pair.js"),
        kind="two clips",
        names=names,
        prompt=a.prompt,
        fingerprint=a.fingerprint,
        maps=MAPS,
        scores=list(zip(a.names, a.scores.tolist(), b.scores.tolist(), strict=True)),
    )


def _videos(e: Explanation, overlays: dict[str, Overlay]) -> dict[str, str]:
    return {"original": _video(e, None)} | {name: _video(e, overlay) for name, overlay in overlays.items()}


def _video(e: Explanation, overlay: Overlay | None) -> str:
    buffer = io.BytesIO()
    frames = overlay_frames(e.source, overlay, size=PLAYER, spacing=e.duration / PLAYER_FRAMES)
    write_mp4(buffer, frames, end=e.duration, crf=27)
    return base64.b64encode(buffer.getvalue()).decode()
