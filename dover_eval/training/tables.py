"""Ratings and preferences to learn from: tables, the clips that they name, and data sets on the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from dover_eval.evaluation import BENCHMARKS, ClipIndex, Item, RatedClip, TableError
from dover_eval.inputs import find_videos
from dover_eval.opinion import to_mos
from dover_eval.training.settings import TableSettings
from dover_eval.wording import one_line


def read_items(settings: TableSettings) -> list[Item]:
    """A table's rows, clips called as the table calls them, ratings on 1-5. Raises TableError with the file."""
    return [_on_our_scale(item, settings) for item in BENCHMARKS[settings.kind].read(Path(settings.table))]


def load_items(settings: TableSettings) -> tuple[list[Item], list[str]]:
    """A table's rows, their clips called by their paths, and the clips not in its folder, as the table calls them.

    Rows whose clips are missing are left out. Raises TableError where a name fits several files, or none is there.
    """
    settings = fetch(settings)
    items, folder = read_items(settings), Path(settings.videos)
    if not folder.is_dir():
        raise TableError(f"{settings.table}: there is no folder {folder} to find its clips in")
    try:
        index = ClipIndex(map(str, find_videos([str(folder)])), str(folder))
        found = {name: index.find(name) for item in items for name in item.videos}
    except TableError as error:
        raise TableError(f"{settings.table}: {error}") from error
    missing = [name for name, path in found.items() if path is None]
    if len(missing) == len(found):
        raise TableError(f"{settings.table}: none of its {len(found)} clips is in {folder}, for one {missing[0]}")
    places = {name: str(Path(path).resolve()) for name, path in found.items() if path is not None}
    there = [item for item in items if all(name in places for name in item.videos)]
    return [_renamed(item, places) for item in there], missing


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


def _on_our_scale(item: Item, settings: TableSettings) -> Item:
    """The ratings from the raters' scale to 1-5. Raises TableError for one beyond the ends."""
    if not isinstance(item, RatedClip):
        return item
    try:
        ratings = {name: to_mos(rating, *settings.rating_range) for name, rating in item.ratings.items()}
    except ValueError as error:
        raise TableError(f"{settings.table}: {item.video}: {error}; rating_range sets the ends") from error
    return dataclasses.replace(item, ratings=ratings)


def _renamed(item: Item, places: Mapping[str, str]) -> Item:
    if isinstance(item, RatedClip):
        return dataclasses.replace(item, video=places[item.video])
    return dataclasses.replace(item, video_a=places[item.video_a], video_b=places[item.video_b])


def clips_of(items: Sequence[Item]) -> list[str]:
    """Every clip of the items, once, in order."""
    return list(dict.fromkeys(video for item in items for video in item.videos))
