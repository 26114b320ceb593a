"""Why a clip scores as it does: scores over time, local quality, and where the words of the prompt look.

Sliding windows are scored as clips of their own, with the frames that the model would sample from them, so a window
over the whole clip has the whole clip's scores. Local quality is what DOVER's two heads say at each place and time,
before they take the mean. A word's *focus* is how far its attention, in the fusion, departs from looking everywhere
alike: Kullback-Leibler divergence from even, over its maximum, the mean over heads and windows. It says where the model
looked, not what the score would be without the word.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dover_eval.opinion import MOS_MAX, MOS_MIN, SCORE_NAMES
from dover_eval.video.decode import VideoError, frame_times, frames_at, sample_moments
from dover_eval.video.layout import as_path
from dover_eval.video.sample import resized

if TYPE_CHECKING:
    from dover_eval.scorer import VideoScorer
    from dover_eval.scores import Fingerprint

PICTURE = 320  # longest side, in pixels, of the pictures that an explanation keeps
# Kana, ideographs and their marks, but for the space.
SPACELESS = "\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uffef\U00020000-\U0003ffff"
WINDOWS_PER_CLIP = 8  # a window is, by default, the clip's length over this


@dataclass(frozen=True)
class Word:
    """A word of the prompt and its focus in [0,1]; None where the text encoder read nothing in it, or cut it off."""

    text: str
    focus: float | None
    cut_off: bool = False


@dataclass(frozen=True, eq=False)
class Explanation:
    """N sliding windows over one clip, K moments with local quality. Times in seconds from the first frame. On the CPU.

    duration: of the clip. window: length of a window. scores: (5,) float32, the whole clip's, as `score` gives them.
    times: (N,), the windows' middles, rising. values: (N,5) float32 in [1,5], the windows' scores.
    frames: (N,3,h,w) uint8, a small picture from the middle of each window; frame_times: (N,), when each appears.
    aesthetic_map, technical_map: (K,H',W') float32, DOVER's own scores at places over the frame, unbounded, higher is
    better; map_times: (K,), rising, the moments they belong to. words: of the prompt, in order.
    """

    source: str
    prompt: str
    duration: float
    window: float
    scores: Tensor
    times: tuple[float, ...]
    values: Tensor
    frames: Tensor
    frame_times: tuple[float, ...]
    aesthetic_map: Tensor
    technical_map: Tensor
    map_times: tuple[float, ...]
    words: tuple[Word, ...]
    fingerprint: Fingerprint
    names: ClassVar[tuple[str, ...]] = SCORE_NAMES

    def __post_init__(self) -> None:
        count, moments = len(self.times), len(self.map_times)
        shapes = {
            "scores": (len(self.names),),
            "values": (count, len(self.names)),
            "frames": (count, 3, *self.frames.shape[2:]),
            "aesthetic_map": (moments, *self.aesthetic_map.shape[1:]),
            "technical_map": (moments, *self.technical_map.shape[1:]),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"expected {name} {shape}, got {tuple(getattr(self, name).shape)}")
        for name in ("scores", "values"):
            low, high = (bound.item() for bound in getattr(self, name).aminmax())
            if not MOS_MIN <= low <= high <= MOS_MAX:
                raise ValueError(f"expected {name} from {MOS_MIN:g} to {MOS_MAX:g}, got {low} to {high}")
        if len(self.frame_times) != count or count == 0 or moments == 0:
            raise ValueError(
                f"expected a frame for each of {count} windows, and maps; got {len(self.frame_times)}, {moments}"
            )
        for name in ("times", "map_times"):
            if list(getattr(self, name)) != sorted(getattr(self, name)):
                raise ValueError(f"expected rising {name}, got {getattr(self, name)}")

    @property
    def worst(self) -> dict[str, int]:
        """By score: the window where it is lowest."""
        return dict(zip(self.names, self.values.argmin(dim=0).tolist(), strict=True))

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {value:.2f}" for name, value in zip(self.names, self.scores.tolist(), strict=True))
        return (
            f"Explanation({Path(self.source).name}: {scores}; {len(self.times)} windows of {self.window:.2f} s in "
            f"{self.duration:.2f} s, maps {tuple(self.aesthetic_map.shape)}, {len(self.words)} words)"
        )


@dataclass(frozen=True)
class _Look:
    """A frame (3,H,W) uint8, when it appeared, and the moment at which it was looked at, in seconds."""

    pixels: Tensor
    time: float
    moment: float


@dataclass(frozen=True)
class _Window:
    """What one window gives: values (5,); maps (2,T',H',W'), aesthetic and technical, and their moments; focus (L,)."""

    values: Tensor
    maps: Tensor
    map_times: list[float]
    focus: Tensor
    picture: Tensor
    picture_time: float


def explain_clip(
    scorer: VideoScorer, video: str | os.PathLike[str], prompt: str, *, windows: int, seconds: float | None = None
) -> Explanation:
    """See `VideoScorer.explain`. One pass over the file besides the one that scores it whole; memory holds the frames
    of the windows that overlap, whatever the clip's length."""
    scorer.check_prompts([prompt])
    if windows < 1:
        raise ValueError(f"expected at least one window, got {windows}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"expected windows longer than 0 s, got {seconds}")
    if not isinstance(video, str | os.PathLike):
        raise TypeError(f"expected a file, whose frames have times, got a {type(video).__name__}")
    video = as_path(video)

    whole = scorer.score(video, prompt)
    if whole.errors[0] is not None:
        raise VideoError(whole.errors[0])
    times, end = frame_times(video)
    start, duration = times[0], end - times[0]
    length = seconds or max(duration / WINDOWS_PER_CLIP, scorer.config.num_frames * duration / len(times))
    length = min(length, duration)
    spans = _slide(start, end, length, windows)
    seen = _look_through(scorer, video, prompt, times, spans)

    middles = [(a + b) / 2 for a, b in spans]
    maps, map_times = _join_maps(seen, middles)
    focus = torch.stack([window.focus for window in seen]).mean(dim=0)
    return Explanation(
        source=str(video),
        prompt=prompt,
        duration=duration,
        window=length,
        scores=whole.values[0],
        times=tuple(middle - start for middle in middles),
        values=torch.stack([window.values for window in seen]),
        frames=torch.stack([window.picture for window in seen]),
        frame_times=tuple(window.picture_time - start for window in seen),
        aesthetic_map=maps[:, 0],
        technical_map=maps[:, 1],
        map_times=tuple(time - start for time in map_times),
        words=_words(prompt, scorer.model.text_encoder.spans(prompt), focus, scorer.model.text_encoder.max_length),
        fingerprint=scorer.fingerprint,
    )


def _slide(start: float, end: float, length: float, count: int) -> list[tuple[float, float]]:
    """At most `count` windows, evenly from the clip's start to its end; one where it fills the clip."""
    room = end - start - length
    count = count if room > 1e-9 * length else 1
    return [(a := start + room * i / max(1, count - 1), min(a + length, end)) for i in range(count)]


def _look_through(
    scorer: VideoScorer, video: str | Path, prompt: str, times: list[float], spans: list[tuple[float, float]]
) -> list[_Window]:
    """What each window gives; frames are let go as soon as the last window that has them is complete."""
    moments = []
    for i, (a, b) in enumerate(spans):
        inside = [time for time in times if a < time < b]
        # The frame on screen when the window opens belongs to it.
        looked = sample_moments([a, *inside], b, scorer.config.num_frames, scorer.config.windows)
        moments += [(moment, i, k) for k, moment in enumerate(looked)]
    moments.sort()
    open_windows: list[dict[int, _Look]] = [{} for _ in spans]
    seen: list[_Window | None] = [None] * len(spans)
    shown = frames_at(video, [moment for moment, _, _ in moments])
    for (moment, i, k), (pixels, time) in zip(moments, shown, strict=True):
        open_windows[i][k] = _Look(pixels, time, moment)
        if len(open_windows[i]) == scorer.config.num_frames:
            seen[i] = _look_at(scorer, [open_windows[i][k] for k in range(len(open_windows[i]))], prompt)
            open_windows[i] = {}
    return [window for window in seen if window is not None]


@torch.no_grad()
def _look_at(scorer: VideoScorer, looks: list[_Look], prompt: str) -> _Window:
    clip = torch.stack([look.pixels for look in looks])
    with scorer.computing():
        output = scorer.model.extract_features(scorer.prepare(clip)[None], [prompt], maps=True)
    output = {name: value.float().cpu() for name, value in output.items()}
    values = output["mos"]
    if scorer.calibration is not None:
        values = scorer.calibration.apply(values, output["quality_weights"])
    maps = torch.cat([output["aesthetic_map"], output["technical_map"]], dim=1)[0]
    steps = maps.shape[1]
    # A step of the map stands for several frames; its moment is that of the one in their middle.
    moments = [looks[int((k + 0.5) * len(looks) / steps)].moment for k in range(steps)]
    middle = looks[len(looks) // 2]
    return _Window(values[0], maps, moments, _focus(output["attention"][0]), _picture(middle.pixels), middle.time)


def _focus(attention: Tensor) -> Tensor:
    """(heads,L,N), rows summing to one -> (L,) in [0,1]: 0 looks everywhere alike, 1 at one place alone."""
    places = attention.shape[-1]
    if places == 1:
        return torch.zeros(attention.shape[1])
    entropy = -(attention * attention.clamp_min(1e-12).log()).sum(dim=-1)
    return (1 - entropy / math.log(places)).clamp(0, 1).mean(dim=0)


def _picture(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[1:]
    scale = min(1.0, PICTURE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return resized(pixels[None], size)[0]


def _join_maps(seen: list[_Window], middles: list[float]) -> tuple[Tensor, list[float]]:
    """(K,2,H',W') and their moments, rising; of a moment that several windows show, what the one says whose middle is
    nearest to it."""
    nearest: dict[float, tuple[float, Tensor]] = {}
    for window, middle in zip(seen, middles, strict=True):
        for k, moment in enumerate(window.map_times):
            away, at = abs(middle - moment), round(moment, 6)  # windows tell one moment to within rounding
            if at not in nearest or away < nearest[at][0]:
                nearest[at] = away, window.maps[:, k]
    moments = sorted(nearest)
    return torch.stack([nearest[moment][1] for moment in moments]), moments


def _words(prompt: str, spans: list[tuple[int, int]], focus: Tensor, max_length: int) -> tuple[Word, ...]:
    """Words as they are written, each with the mean focus of its tokens; `max_length` tokens are read at most."""
    read = max(b for _, b in spans) if len(spans) >= max_length else len(prompt)
    words = []
    for start, end in _word_bounds(prompt, spans):
        own = [focus[i].item() for i, (a, b) in enumerate(spans) if a < b and a < end and start < b]
        words.append(Word(prompt[start:end], sum(own) / len(own) if own else None, cut_off=start >= read))
    return tuple(words)


def _word_bounds(prompt: str, spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What spaces part; in Chinese and Japanese, which have none, what is a token."""
    for match in re.finditer(rf"[{SPACELESS}]+|[^\s{SPACELESS}]+", prompt):
        edges = {match.start(), match.end()}
        if re.match(f"[{SPACELESS}]", match.group()):
            edges |= {edge for span in spans for edge in span if match.start() < edge < match.end()}
        yield from itertools.pairwise(sorted(edges))
