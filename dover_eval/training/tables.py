"""Ratings and preferences to learn from: tables, the clips that they name, and data sets on the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dover_eval.evaluation import BENCHMARKS, ClipIndex, JudgedPair, RatedClip, TableError
from dover_eval.evaluation.benchmarks import read_ratings
from dover_eval.inputs import find_videos
from dover_eval.opinion import MOS_MAX, MOS_MIN, SCORE_NAMES
from dover_eval.tables import choice, number, read_rows, text
from dover_eval.training.settings import TableSettings
from dover_eval.wording import one_line

LABELS = {"A": (1.0, 0.0, 0.0), "B": (0.0, 1.0, 0.0), "tie": (0.0, 0.0, 1.0)}
VERDICTS = {(1.0, 0.0, 0.0): 1, (0.0, 1.0, 0.0): -1, (0.0, 0.0, 1.0): 0}
ROUNDING = 1e-6


@dataclass(frozen=True)
class Example:
    """A row to learn from: a clip with its ratings, on 1-5, or two clips of one prompt with verdicts.

    item: what is known; its clips are called by their paths, once `load_examples` has found them. place: the table and
    the line. preferences: for pairs, by score name, the shares of A, of B and of ties, which sum to one. content: rows
    of one content must not come apart in a split; None where the table does not say.
    """

    item: RatedClip | JudgedPair
    place: str
    preferences: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    content: str | None = None

    @property
    def videos(self) -> tuple[str, ...]:
        """One clip, or A and B."""
        item = self.item
        return (item.video,) if isinstance(item, RatedClip) else (item.video_a, item.video_b)

    @property
    def prompt(self) -> str:
        return self.item.prompt


def read_examples(settings: TableSettings) -> list[Example]:
    """A table's rows, clips called as the table calls them. Raises TableError with the file and the line."""
    path = Path(settings.table)
    if settings.kind == "pairs":
        return _read_pairs(path)
    if settings.kind == "ratings":
        rows = read_rows(path, (), ("content",))
        rated = zip(read_ratings(path), rows, strict=True)
        examples = [Example(item, place, content=row.get("content") or None) for item, (place, row) in rated]
    else:
        read = BENCHMARKS[settings.kind].read(path)
        examples = [Example(item, f"{path}, item {i}", _certain(item)) for i, item in enumerate(read, start=1)]
    return [_on_our_scale(example, settings.rating_range) for example in examples]


def load_examples(settings: TableSettings) -> tuple[list[Example], list[str]]:
    """A table's rows with their clips found in its folder, and the clips that are not there, as the table calls them.

    Rows whose clips are missing are left out. Raises TableError where a name fits several files, or none is there.
    """
    settings = fetch(settings)
    examples, folder = read_examples(settings), Path(settings.videos)
    if not folder.is_dir():
        raise TableError(f"{settings.table}: there is no folder {folder} to find its clips in")
    try:
        index = ClipIndex(map(str, find_videos([str(folder)])), str(folder))
        found = {name: index.find(name) for example in examples for name in example.videos}
    except TableError as error:
        raise TableError(f"{settings.table}: {error}") from error
    missing = [name for name, path in found.items() if path is None]
    if len(missing) == len(found):
        raise TableError(f"{settings.table}: none of its {len(found)} clips is in {folder}, for one {missing[0]}")
    places = {name: str(Path(path).resolve()) for name, path in found.items() if path is not None}
    there = [example for example in examples if all(name in places for name in example.videos)]
    return [_renamed(example, places) for example in there], missing


def fetch(settings: TableSettings) -> TableSettings:
    """`settings` with `hub` resolved to a local copy of the data set: from the hub's cache, or from the hub.

    Raises TableError with the reason where it is in neither.
    """
    if settings.hub is None:
        return settings
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = settings.videos.strip("./")
    try:
        snapshot = Path(
            snapshot_download(
                settings.hub,
                repo_type="dataset",
                revision=settings.revision,
                allow_patterns=[settings.table, f"{folder}/*" if folder else "*"],
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise TableError(
            f"the data set {settings.hub} is neither in the hub's cache nor to be had from the hub: "
            f"{one_line(error)}. Connect once, or name a local table and folder."
        ) from error
    table, videos = snapshot / settings.table, snapshot / settings.videos
    for what, path in (("table", table), ("folder", videos)):
        if not path.exists():
            raise TableError(f"the data set {settings.hub} has no {what} {path.relative_to(snapshot)}")
    return dataclasses.replace(settings, table=str(table), videos=str(videos), hub=None, revision=None)


def _read_pairs(path: Path) -> list[Example]:
    """`prompt, video_a, video_b, aspect, label`, perhaps `share` and `content`: the aspects of a pair are one row."""
    aspects = {name: name for name in SCORE_NAMES}
    pairs: dict[tuple[str, str, str], Example] = {}
    for place, row in read_rows(path, ("prompt", "video_a", "video_b", "aspect", "label"), ("share", "content")):
        aspect = choice(place, "aspect", row["aspect"], aspects)
        key = (
            text(place, "video_a", row["video_a"]),
            text(place, "video_b", row["video_b"]),
            text(place, "prompt", row["prompt"]),
        )
        if key[0] == key[1]:
            raise TableError(f"{place}: {key[0]} is compared with itself")
        label = choice(place, "label", row["label"], LABELS)
        content = row.get("content") or None
        pair = pairs.setdefault(key, Example(JudgedPair(*key, {}), place, {}, content))
        if content and pair.content and content != pair.content:
            raise TableError(f"{place}: {key[0]} and {key[1]} are of content {content}, and before of {pair.content}")
        mirrored = pairs.get((key[1], key[0], key[2]))
        if aspect in pair.preferences or (mirrored and aspect in mirrored.preferences):
            raise TableError(f"{place}: a second verdict on {aspect} for {key[0]} and {key[1]}")
        assert isinstance(pair.item, JudgedPair)
        verdicts = {**pair.item.verdicts, aspect: VERDICTS[label]}
        shares = _shares(place, label, number(place, "share", row["share"])) if row.get("share") else label
        pairs[key] = dataclasses.replace(
            pair,
            item=dataclasses.replace(pair.item, verdicts=verdicts),
            preferences={**pair.preferences, aspect: shares},
            content=pair.content or content,
        )
    return list(pairs.values())


def _shares(place: str, label: tuple[float, float, float], share: float) -> tuple[float, float, float]:
    """(A, B, tie) of votes of which `share` were for A and the others for B."""
    if not 0 <= share <= 1:
        raise TableError(f"{place}: expected a share in 0-1, found {share:g}")
    if (label[0] and share < 0.5) or (label[1] and share > 0.5) or (label[2] and abs(share - 0.5) > ROUNDING):
        raise TableError(f"{place}: a share of {share:g} for A contradicts the label")
    return label if label[2] else (share, 1 - share, 0.0)


def _certain(item: RatedClip | JudgedPair) -> dict[str, tuple[float, float, float]]:
    """The preferences of a pair that comes without votes."""
    if isinstance(item, RatedClip):
        return {}
    shares = {verdict: label for label, verdict in VERDICTS.items()}
    return {aspect: shares[verdict] for aspect, verdict in item.verdicts.items()}


def _on_our_scale(example: Example, ends: tuple[float, float]) -> Example:
    """The ratings from the raters' scale to 1-5. Raises TableError for one beyond the ends."""
    item = example.item
    if not isinstance(item, RatedClip):
        return example
    low, high = ends
    for name, rating in item.ratings.items():
        if not low - ROUNDING <= rating <= high + ROUNDING:
            raise TableError(
                f"{example.place}: {name} is {rating:g}, expected {low:g} to {high:g}; rating_range sets the ends"
            )
    scaled = {name: MOS_MIN + (MOS_MAX - MOS_MIN) * (r - low) / (high - low) for name, r in item.ratings.items()}
    return dataclasses.replace(example, item=dataclasses.replace(item, ratings=scaled))


def _renamed(example: Example, places: Mapping[str, str]) -> Example:
    item = example.item
    if isinstance(item, RatedClip):
        return dataclasses.replace(example, item=dataclasses.replace(item, video=places[item.video]))
    item = dataclasses.replace(item, video_a=places[item.video_a], video_b=places[item.video_b])
    return dataclasses.replace(example, item=item)


def clips_of(examples: Sequence[Example]) -> list[str]:
    """Every clip of the examples, once, in order."""
    return list(dict.fromkeys(video for example in examples for video in example.videos))
