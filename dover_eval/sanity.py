"""A self-test of a scorer on anyone's clips: does the right score fall with a known defect, steadily, and most of all?

Known defects at rising strength, and prompts that are another clip's, say the contrary, or are empty. It tells whether
scores mean what their names say, not whether people would agree: for that there is `dover_eval.evaluation`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dover_eval.distortions import ASPECT_OF, Frames, distort, h264
from dover_eval.opinion import ASPECTS, SCORE_NAMES
from dover_eval.prompts import next_different
from dover_eval.scorer import VideoScorer
from dover_eval.video.sample import resized
from dover_eval.wording import without_nan

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
CRFS = (23, 30, 37, 44, 51)
SHORT_SIDE = 360  # larger clips are shrunk first: spoiling 4K pixels costs minutes, and scorers shrink them anyway
RANK, FALL, SHARE = 0.8, 0.05, 0.75
SAME = 1e-4  # scores closer than this are one number
BLOWN, UNBLOWN = 250, 0.02  # values that are blown out, and a share of them that is too small to be a fault
UNSEEN = 0.25  # a defect that changes pixels by less than this, of 255, is not there (a frozen still, say)

CONTRARIES = (
    ("red", "blue"),
    ("green", "purple"),
    ("yellow", "black"),
    ("white", "orange"),
    ("day", "night"),
    ("sunny", "stormy"),
    ("summer", "winter"),
    ("hot", "frozen"),
    ("indoors", "outdoors"),
    ("left", "right"),
    ("up", "down"),
    ("rising", "falling"),
    ("growing", "shrinking"),
    ("moving", "standing still"),
    ("running", "sleeping"),
    ("walking", "lying"),
    ("fast", "slow"),
    ("one", "many"),
    ("empty", "crowded"),
    ("big", "tiny"),
    ("old", "young"),
    ("man", "woman"),
    ("boy", "girl"),
    ("dog", "cat"),
    ("car", "boat"),
    ("city", "forest"),
    ("beach", "mountain"),
)
_CONTRARY = {a: b for pair in CONTRARIES for a, b in (pair, pair[::-1])}


@dataclass(frozen=True)
class CheckResult:
    """One defect, or one kind of wrong prompt, over the clips that it changes.

    score: the one that should fall. levels: what was done, the untouched first. means: (levels, 5) mean scores.
    rank: mean over clips of Spearman's correlation of the score with the defect's absence; for prompts, the share of
    clips whose own prompt beats the wrong one. fall: how far the score falls, untouched to worst. other, other_move:
    which of the three other aspects moves most, and how far. status and its reason.
    """

    name: str
    score: str
    levels: tuple[str, ...]
    clips: int
    means: tuple[tuple[float, ...], ...] = ()
    rank: float = float("nan")
    fall: float = float("nan")
    other: str = ""
    other_move: float = float("nan")
    status: Literal["pass", "fail", "skipped"] = "skipped"
    reason: str = ""


@dataclass(frozen=True)
class SanityReport:
    """Results of all checks, alarms for scores that never change, and whose they are."""

    checks: tuple[CheckResult, ...]
    alarms: tuple[str, ...]
    clips: int
    fingerprint: str

    @property
    def ok(self) -> bool:
        """Whether no check failed, no alarm rang, and something was checked."""
        failed = any(check.status == "fail" for check in self.checks)
        return any(check.means for check in self.checks) and not failed and not self.alarms

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON: a figure without a value is None."""
        return without_nan(asdict(self)) | {"ok": self.ok}


def load_clip(path: Path, decode: Callable[[Path], Tensor]) -> Frames:
    """The frames (T,H,W,3) that a scorer samples from a file (`VideoScorer.decode`), short side at most `SHORT_SIDE`.

    Defects are put on these, not on the file: a flicker is there whatever the frame rate. Raises VideoError.
    """
    frames = decode(path)
    scale = SHORT_SIDE / min(frames.shape[2:])
    if scale < 1:
        height, width = (round(side * scale) for side in frames.shape[2:])
        frames = resized(frames, (height, width))
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def drawn_clips(count: int, num_frames: int, seed: int = 0) -> tuple[list[Frames], list[str]]:
    """Moving drawn scenes and their captions, for users without clips at hand."""
    from dover_eval.training.synthetic import Scene, caption, draw, random_scene

    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        if (scene := random_scene(rng, held_out=True)).motion != "still":
            scenes.append(scene)
    return [draw(s, rng, num_frames=num_frames, size=160) for s in scenes], [caption(s, rng) for s in scenes]


def contradict(prompt: str) -> str | None:
    """The prompt with each word that has a contrary in `CONTRARIES` turned into it; None where there is none.

    A word whose contrary is there as well stays: "a woman and a man" says no other thing than "a man and a woman".
    """
    said = f" {' '.join(re.findall(r'[a-z]+', prompt.lower()))} "
    turning = {word: contrary for word, contrary in _CONTRARY.items() if f" {contrary} " not in said}
    turned = re.sub(r"[A-Za-z]+", lambda word: turning.get(word[0].lower(), word[0]), prompt)
    return turned if turned != prompt else None


def check_scorer(
    scorer: VideoScorer,
    clips: Sequence[Frames],
    prompts: Sequence[str] | None,
    *,
    defects: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> SanityReport:
    """Spoil `clips` (T,H,W,3) uint8 in every known way, and their prompts, and look at what the scores do.

    A defect passes where its score falls by more than `FALL` points with a mean rank correlation of at least `RANK`,
    and further than any other aspect moves; a wrong prompt where Alignment does, for at least `SHARE` of the clips.

    Args:
        prompts: one a clip; None scores all under "a video" and leaves out the checks of prompts.
        defects: names to check, of `defect_names()`; by default all.
        progress: called with the name of each check as it begins.

    Raises ValueError for other counts or defects, and for a prompt that the scorer's text encoder knows no word of.
    """
    if not clips or (prompts is not None and len(prompts) != len(clips)):
        raise ValueError(f"expected at least one clip and a prompt for each, got {len(clips)} and {len(prompts or ())}")
    names = defect_names() if defects is None else list(defects)
    if unknown := set(names) - set(defect_names()):
        raise ValueError(f"expected defects of {', '.join(defect_names())}, got {', '.join(sorted(unknown))}")
    report = progress or (lambda _: None)
    texts = list(prompts) if prompts is not None else ["a video"] * len(clips)
    scorer.check_prompts(texts)  # else that clip would have no scores in any check
    report("untouched")
    untouched = _score(scorer, clips, texts)
    seen, results = [untouched], []
    for name in names:
        report(name)
        result, scores = _check_defect(scorer, name, clips, texts, untouched, seed)
        results.append(result)
        seen.append(scores)
    if prompts is not None:
        others = [None if i is None else texts[i] for i in next_different(texts)]
        for kind, wrong in (("another's prompt", others), ("contradiction", [contradict(t) for t in texts])):
            report(kind)
            result, scores = _check_prompts(scorer, kind, clips, wrong, untouched)
            results.append(result)
            seen.append(scores)
        report("empty prompt")
        results.append(_check_empty(scorer, clips, untouched))
    alarms = _alarms(untouched, np.concatenate(seen))
    return SanityReport(tuple(results), tuple(alarms), len(clips), str(scorer.fingerprint))


def defect_names() -> list[str]:
    """All that `check_scorer` knows: the codec as h264, in steps of its constant rate factor."""
    return ["h264" if name == "compress" else name for name in ASPECT_OF]


def _aspect_of(defect: str) -> str:
    return ASPECT_OF["compress" if defect == "h264" else defect]


def _check_defect(
    scorer: VideoScorer, name: str, clips: Sequence[Frames], texts: Sequence[str], untouched: NDArray[Any], seed: int
) -> tuple[CheckResult, NDArray[Any]]:
    aspect = _aspect_of(name)
    levels: tuple[float, ...] = CRFS if name == "h264" else STRENGTHS
    labels = ("none", *(f"crf {level}" if name == "h264" else f"{level:g}" for level in levels))
    scores = []
    for i, clip in enumerate(clips):
        # One seed a clip, so that a stronger defect is more of the same and not another draw.
        rng = lambda i=i: np.random.default_rng([seed, i])
        spoiled = [h264(clip, int(v)) if name == "h264" else distort(clip, name, v, rng()) for v in levels]
        if _shows(name, clip, spoiled[-1]):
            found = _score(scorer, spoiled, [texts[i]] * len(levels))
            scores.append(np.concatenate([untouched[i : i + 1], found]))
    if not scores:
        reason = "harms none of these clips (do they move, are they bright?)"
        return CheckResult(name, aspect, labels, 0, reason=reason), np.empty((0, len(SCORE_NAMES)))
    table = np.stack(scores)  # (clips, levels, 5)
    own = table[:, :, SCORE_NAMES.index(aspect)]
    rank = float(np.mean([_fall_rank(clip) for clip in own]))
    verdict = _judge(name, aspect, labels, table, rank, RANK, "not steadily (rank correlation {:.2f})")
    return verdict, table[:, 1:].reshape(-1, len(SCORE_NAMES))


def _shows(defect: str, clip: Frames, spoiled: Frames) -> bool:
    """Whether the defect is there: frames dropped from a still are not, and more light in the dark does no harm."""
    if defect == "overexpose" and (spoiled >= BLOWN).mean() - (clip >= BLOWN).mean() < UNBLOWN:
        return False
    return bool(np.abs(spoiled.astype(np.int16) - clip).mean() >= UNSEEN)


def _check_prompts(
    scorer: VideoScorer, name: str, clips: Sequence[Frames], wrong: Sequence[str | None], untouched: NDArray[Any]
) -> tuple[CheckResult, NDArray[Any]]:
    chosen = [i for i, text in enumerate(wrong) if text is not None]
    labels = ("right", "wrong")
    if not chosen:
        reason = "needs two different prompts" if name.startswith("another") else "no word here has a known contrary"
        return CheckResult(name, "Alignment", labels, 0, reason=reason), np.empty((0, len(SCORE_NAMES)))
    found = _score(scorer, [clips[i] for i in chosen], [str(wrong[i]) for i in chosen])
    table = np.stack([untouched[chosen], found], axis=1)
    alignment = table[:, :, SCORE_NAMES.index("Alignment")]
    share = float((alignment[:, 0] > alignment[:, 1]).mean())
    lacking = "the right prompt wins for {:.0%} of the clips"
    return _judge(name, "Alignment", labels, table, share, SHARE, lacking), found


def _check_empty(scorer: VideoScorer, clips: Sequence[Frames], untouched: NDArray[Any]) -> CheckResult:
    """An empty prompt is best refused; a scorer that takes it must at least find it unfitting."""
    try:
        found, _ = _check_prompts(scorer, "empty prompt", clips, [""] * len(clips), untouched)
    except ValueError:
        labels = ("right", "empty")
        return CheckResult("empty prompt", "Alignment", labels, len(clips), status="pass", reason="refused")
    return found


def _judge(
    name: str, aspect: str, labels: tuple[str, ...], table: NDArray[Any], rank: float, bound: float, unsteady: str
) -> CheckResult:
    """From scores (clips, levels, 5); `unsteady` says what a `rank` below its `bound` means."""
    means = table.mean(axis=0)
    moved = means[0] - means[-1]
    fall = float(moved[SCORE_NAMES.index(aspect)])
    others = {other: abs(float(moved[SCORE_NAMES.index(other)])) for other in ASPECTS if other != aspect}
    other = max(others, key=lambda key: others[key])
    reasons = []
    if not np.isfinite(table).all():
        reasons.append("scores that are no numbers")
    elif np.ptp(table[:, :, SCORE_NAMES.index(aspect)], axis=1).max() < SAME:
        reasons.append("identical scores whatever was done")
    else:
        reasons += [f"falls by {fall:.2f}, not by {FALL:g}"] if fall <= FALL else []
        reasons += [unsteady.format(rank)] if rank < bound else []
    reasons += [f"{other} moves further"] if others[other] >= fall else []
    return CheckResult(
        name=name,
        score=aspect,
        levels=labels,
        clips=len(table),
        means=tuple(tuple(map(float, row)) for row in means),
        rank=rank,
        fall=fall,
        other=other,
        other_move=others[other],
        status="fail" if reasons else "pass",
        reason="; ".join(reasons),
    )


def _alarms(untouched: NDArray[Any], seen: NDArray[Any]) -> Iterable[str]:
    for column, name in enumerate(SCORE_NAMES):
        if lost := int((~np.isfinite(seen[:, column])).sum()):
            yield f"{name} is no number for {lost} of {len(seen)} versions of clips"
        elif len(seen) > 1 and np.ptp(seen[:, column]) < SAME:
            yield f"{name} is {seen[0, column]:.4f} for all {len(seen)} versions of all clips"
        elif len(untouched) > 1 and np.ptp(untouched[:, column]) < SAME:
            yield f"{name} is {untouched[0, column]:.4f} for every one of the {len(untouched)} untouched clips"


def _fall_rank(scores: NDArray[Any]) -> float:
    """Spearman's correlation of scores (levels,) with the defect's absence; 0 where they are all the same."""
    from scipy.stats import spearmanr

    if np.ptp(scores) < SAME:
        return 0.0
    return float(spearmanr(scores, -np.arange(len(scores))).statistic)


def _score(scorer: VideoScorer, clips: Sequence[Frames], texts: Sequence[str]) -> NDArray[Any]:
    """(N,5) float64."""
    return scorer.score([torch.from_numpy(clip) for clip in clips], list(texts), layout="THWC").values.double().numpy()
