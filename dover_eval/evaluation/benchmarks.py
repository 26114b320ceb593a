"""Benchmarks' own files, read as ratings or as preferences.

What a file looks like was taken from public code that reads it; where nothing public shows it, the reader says so and
refuses what it does not recognise. Nothing is downloaded here: `Benchmark.where` says where to get it, and under which
licence is on its own page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dover_eval.opinion import ROUNDING, SCORE_NAMES
from dover_eval.tables import TableError, choice, number, read_rows, read_text, text

KONVID_TAIL = "_original_centercrop_960x540_8s"  # of its files' names, between the number and the suffix


@dataclass(frozen=True)
class RatedClip:
    """A clip with its ratings by score name; an aspect that was not rated is absent.

    content: what the table says that it shows; None where it does not say.
    """

    video: str
    prompt: str
    ratings: Mapping[str, float]
    content: str | None = None

    @property
    def videos(self) -> tuple[str, ...]:
        return (self.video,)


@dataclass(frozen=True)
class JudgedPair:
    """Two clips of one prompt with verdicts by score name: 1 for A, -1 for B, 0 for a tie; absent where not judged.

    shares: by score name the part of the votes, in 0-1, that was for A; absent where they were not counted.
    content: as of a `RatedClip`.
    """

    video_a: str
    video_b: str
    prompt: str
    verdicts: Mapping[str, int]
    shares: Mapping[str, float] = field(default_factory=dict)
    content: str | None = None

    @property
    def videos(self) -> tuple[str, ...]:
        return (self.video_a, self.video_b)


Item = RatedClip | JudgedPair


def ratings_of(items: Sequence[Item], name: str) -> dict[tuple[str, str], list[float]]:
    """All ratings of the score `name`, by (video, prompt)."""
    ratings: dict[tuple[str, str], list[float]] = defaultdict(list)
    for item in items:
        if isinstance(item, RatedClip) and name in item.ratings:
            ratings[item.video, item.prompt].append(item.ratings[name])
    return ratings


def pairs_of(items: Sequence[Item], name: str) -> list[JudgedPair]:
    """The pairs with a verdict on the score `name`."""
    return [item for item in items if isinstance(item, JudgedPair) and name in item.verdicts]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it holds, where it is to be had, and how its file is read."""

    title: str
    holds: Literal["ratings", "pairs"]
    where: str
    read: Callable[[Path], Sequence[Item]]


def read_ratings(path: Path) -> list[RatedClip]:
    """The challenge's table: `video_name, Prompt, Traditional_MOS, ..., Overall_MOS`; any of the five may be missing.

    It may have a column `content`. An empty cell is a rating that is missing, not a zero. Raises TableError for a sixth
    rating.
    """
    columns = {f"{name}_MOS": name for name in SCORE_NAMES}
    rows = read_rows(path, ("video_name", "Prompt"), (*columns, "content"))
    if unknown := [name for name in rows[0][1] if name.casefold().endswith("_mos") and name not in columns]:
        raise TableError(f"{path}: the ratings {', '.join(unknown)} are none of {', '.join(columns)}")
    present = [column for column in columns if column in rows[0][1]]
    if not present:
        raise TableError(f"{path}: expected at least one of the columns {', '.join(columns)}")
    clips = [
        RatedClip(
            text(place, "video_name", row["video_name"]),
            text(place, "Prompt", row["Prompt"]),
            {columns[c]: number(place, c, row[c]) for c in present if row[c]},
            row.get("content") or None,
        )
        for place, row in rows
    ]
    if not any(clip.ratings for clip in clips):
        raise TableError(f"{path}: every cell of {', '.join(present)} is empty")
    return clips


def read_pairs(path: Path) -> list[JudgedPair]:
    """One verdict a row: `prompt, video_a, video_b, aspect, label`, with a score name as aspect and A, B or tie.

    Perhaps also `share`, A's part of the votes, and `content`. All verdicts on a pair are one item.
    """
    aspects, labels = {name: name for name in SCORE_NAMES}, {"A": 1, "B": -1, "tie": 0}
    pairs: dict[tuple[str, str, str], tuple[dict[str, int], dict[str, float]]] = {}
    contents: dict[tuple[str, str, str], str] = {}
    for place, row in read_rows(path, ("prompt", "video_a", "video_b", "aspect", "label"), ("share", "content")):
        aspect, verdict = choice(place, "aspect", row["aspect"], aspects), choice(place, "label", row["label"], labels)
        a, b, prompt = (text(place, column, row[column]) for column in ("video_a", "video_b", "prompt"))
        if a == b:
            raise TableError(f"{place}: {a} is compared with itself")
        verdicts, shares = pairs.setdefault((a, b, prompt), ({}, {}))
        if aspect in verdicts or aspect in pairs.get((b, a, prompt), ({},))[0]:
            raise TableError(f"{place}: a second verdict on {aspect} for {a} and {b}")
        verdicts[aspect] = verdict
        if row.get("share"):
            shares[aspect] = _share(place, row["share"], verdict)
        content = row.get("content")
        if content and (known := contents.setdefault((a, b, prompt), content)) != content:
            raise TableError(f"{place}: {a} and {b} are of content {content}, and before of {known}")
    return [JudgedPair(*key, *told, contents.get(key)) for key, told in pairs.items()]


def _share(place: str, value: str, verdict: int) -> float:
    """A's part of the votes, which has to agree with the verdict."""
    share = number(place, "share", value)
    if not 0 <= share <= 1:
        raise TableError(f"{place}: expected a share in 0-1, found {share:g}")
    if verdict * (share - 0.5) < 0 or (not verdict and abs(share - 0.5) > ROUNDING):
        raise TableError(f"{place}: a share of {share:g} for A contradicts the label")
    return share


def read_videogen_rewardbench(path: Path) -> list[JudgedPair]:
    """`videogen-rewardbench.csv`: `path_A, path_B, prompt`, and `A`, `B` or `same` in `VQ, MQ, TA, Overall`.

    As read by KwaiVGI/VideoAlign's eval_videogen_rewardbench.py. Visual quality goes with Traditional, motion quality
    with Temporal, text alignment with Alignment. VQ there is about beauty as well, for which we have Aesthetic.
    """
    aspects = {"VQ": "Traditional", "MQ": "Temporal", "TA": "Alignment", "Overall": "Overall"}
    labels = {"A": 1, "B": -1, "same": 0}
    return [
        JudgedPair(
            text(place, "path_A", row["path_A"]),
            text(place, "path_B", row["path_B"]),
            text(place, "prompt", row["prompt"]),
            {ours: choice(place, column, row[column], labels) for column, ours in aspects.items() if row[column]},
        )
        for place, row in read_rows(path, ("path_A", "path_B", "prompt", *aspects))
    ]


def read_genai_bench(path: Path) -> list[JudgedPair]:
    """GenAI-Bench's `video_generation`: `prompt, left_video, right_video, vote_type`, as Parquet, CSV or JSON lines.

    `vote_type` is leftvote, rightvote, tievote or bothbad_vote (TIGER-AI-Lab/GenAI-Bench, inference.py); the last two
    are ties for a score that only compares. Of a URL the file's name counts. The name of the prompt's column could not
    be verified against the data set; another one is refused.
    """
    votes = {"leftvote": 1, "rightvote": -1, "tievote": 0, "bothbad_vote": 0}
    return [
        JudgedPair(
            text(place, "left_video", row["left_video"]),
            text(place, "right_video", row["right_video"]),
            text(place, "prompt", row["prompt"]),
            {"Overall": choice(place, "vote_type", row["vote_type"], votes)},
        )
        for place, row in read_rows(path, ("prompt", "left_video", "right_video", "vote_type"))
    ]


def read_t2vqa_db(path: Path) -> list[RatedClip]:
    """T2VQA-DB's annotation file: `file|prompt|MOS` a line, without a header (QMME/T2VQA, dataset/dataset.py)."""
    clips = []
    for line, entry in enumerate(read_text(path).split("\n"), start=1):
        if not entry.strip():
            continue
        place = f"{path}, line {line}"
        name, _, rest = entry.partition("|")
        prompt, bar, mos = rest.rpartition("|")  # a prompt may hold a bar of its own
        if not (name.strip() and prompt.strip() and bar):
            raise TableError(f"{place}: expected file|prompt|MOS, found {entry[:60]!r}")
        clips.append(RatedClip(name.strip(), prompt.strip(), {"Overall": number(place, "the MOS", mos)}))
    return clips


def read_lgvq(path: Path) -> list[RatedClip]:
    """LGVQ's table by position: name, generator, prompt, spatial, temporal and alignment MOS, under a header.

    The order is that of public loaders of UGVQ (names come without `.mp4`); the file itself was not seen, so its
    columns' names are not relied on and a table of another width is refused. Spatial quality goes with Traditional.
    """
    clips = []
    for place, row in read_rows(path, ()):
        cells = list(row.values())
        if len(cells) != 6:
            raise TableError(
                f"{path}: expected six columns (name, generator, prompt, spatial, temporal, alignment), "
                f"found {len(cells)}: {', '.join(row)}"
            )
        ratings = zip(("Traditional", "Temporal", "Alignment"), cells[3:], strict=True)
        name, prompt = text(place, "name", cells[0]), text(place, "prompt", cells[2])
        clips.append(RatedClip(name, prompt, {ours: number(place, ours, cell) for ours, cell in ratings if cell}))
    return clips


def read_konvid_1k(path: Path) -> list[RatedClip]:
    """KoNViD-1k's `KoNViD_1k_mos.csv` (`flickr_id, mos`) or `KoNViD_1k_attributes.csv` (`flickr_id, ..., MOS`).

    Both as public loaders read them. Camera clips without prompts: each is scored under "a video", and its rating
    goes with Traditional. Files are named by the id alone or by `<id>_original_centercrop_960x540_8s.mp4`, which
    `ClipIndex` knows by `KONVID_TAIL`.
    """
    rows = read_rows(path, ("flickr_id",))
    column = next((name for name in ("mos", "MOS") if rows and name in rows[0][1]), None)
    if column is None:
        raise TableError(f"{path}: expected a column mos or MOS")
    return [
        RatedClip(
            text(place, "flickr_id", row["flickr_id"]).removesuffix(".0"),
            "a video",
            {"Traditional": number(place, column, row[column])},
        )
        for place, row in rows
    ]


BENCHMARKS: dict[str, Benchmark] = {
    "ratings": Benchmark("Your own ratings, in the challenge's format", "ratings", "your own", read_ratings),
    "pairs": Benchmark("Your own preferences", "pairs", "your own", read_pairs),
    "videogen-rewardbench": Benchmark(
        "VideoGen-RewardBench",
        "pairs",
        "https://huggingface.co/datasets/KlingTeam/VideoGen-RewardBench (videogen-rewardbench.csv and videos.zip)",
        read_videogen_rewardbench,
    ),
    "genai-bench": Benchmark(
        "GenAI-Bench, video generation",
        "pairs",
        "https://huggingface.co/datasets/TIGER-Lab/GenAI-Bench (the folder video_generation)",
        read_genai_bench,
    ),
    "t2vqa-db": Benchmark(
        "T2VQA-DB", "ratings", "https://github.com/QMME/T2VQA (a link to the archive in its README)", read_t2vqa_db
    ),
    "taobaovd-gc": Benchmark(
        "TaobaoVD-GC",
        "ratings",
        "the VQualA 2025 challenge on the quality of generated video (ICCV 2025), on registration with its organisers",
        read_ratings,
    ),
    "lgvq": Benchmark(
        "LGVQ", "ratings", "https://github.com/zczhang-sjtu/UGVQ, or on request to its authors", read_lgvq
    ),
    "konvid-1k": Benchmark(
        "KoNViD-1k", "ratings", "https://database.mmsp-kn.de/konvid-1k-database.html", read_konvid_1k
    ),
}
