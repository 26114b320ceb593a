"""All that a run learns from and is judged on: tables read, clips found and decoded, the two sides apart."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dover_eval.evaluation import Item, JudgedPair, RatedClip, TableError, wanted_clips
from dover_eval.hashing import file_sha256
from dover_eval.opinion import SCORE_NAMES
from dover_eval.training.batches import preference
from dover_eval.training.clips import ClipIdentity, ClipStore, survey
from dover_eval.training.judging import check_judgeable
from dover_eval.training.settings import DataSettings, TableSettings
from dover_eval.training.splits import check_apart, split_examples
from dover_eval.training.tables import clips_of, fetch, load_items

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableRecord:
    """What became of a table: its file and hash, how many rows are used, and clips and prompts that could not be."""

    table: str
    kind: str
    sha256: str
    rows: int
    hub: str | None
    revision: str | None
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """Training and validation, the identity of every clip by its path, and where it all came from."""

    training: tuple[Item, ...]
    validation: tuple[Item, ...]
    identities: dict[str, ClipIdentity]
    tables: tuple[TableRecord, ...]
    validation_tables: tuple[TableRecord, ...]

    @property
    def digest(self) -> str:
        """sha256 over the examples of both sides, in order, and their clips' bytes."""
        digest = hashlib.sha256()
        for side in (self.training, self.validation):
            for example in side:
                content = [self.identities[path].sha256 for path in example.videos]
                values = (
                    example.ratings
                    if isinstance(example, RatedClip)
                    else {name: preference(example, name) for name in example.verdicts}
                )
                digest.update(repr((content, example.prompt, sorted(values.items()))).encode())
            digest.update(b"|")
        return digest.hexdigest()

    def counts(self, side: str) -> dict[str, Any]:
        """How much "training" or "validation" holds: clips, prompts, ratings and verdicts by score name."""
        examples: Sequence[Item] = getattr(self, side)
        rated = [item for item in examples if isinstance(item, RatedClip)]
        judged = [item for item in examples if isinstance(item, JudgedPair)]
        return {
            "rows": len(examples),
            "clips": len({self.identities[path].sha256 for path in clips_of(examples)}),
            "prompts": len({example.prompt for example in examples}),
            "ratings": {n: c for n in SCORE_NAMES if (c := sum(n in item.ratings for item in rated))},
            "verdicts": {n: c for n in SCORE_NAMES if (c := sum(n in item.verdicts for item in judged))},
        }

    def records(self) -> list[dict[str, Any]]:
        """The tables, fit for JSON."""
        sides = (("training", self.tables), ("validation", self.validation_tables))
        return [{"side": side, **asdict(record)} for side, records in sides for record in records]

    @property
    def validation_keys(self) -> list[tuple[str, str]]:
        """Every (path, prompt) that the validation needs a score of."""
        return wanted_clips(self.validation)


def collect(
    settings: DataSettings, store: ClipStore, seed: int, fault: Callable[[str], str | None] = lambda prompt: None
) -> Corpus:
    """Read every table, decode every clip once, and set training and validation apart.

    Args:
        fault: why the model cannot read a prompt, or None (`TextEncoder.fault`).

    Raises:
        TableError: a table cannot be used, or its clips are missing or cannot be decoded, or its prompts not be read,
            and it does not skip them.
        DuplicateError: training and validation share a clip.
        SplitError: no split is left, or nothing can be judged on the validation.
    """
    sources = [(table, load_items(table)) for table in (*settings.train, *settings.validation)]
    paths = clips_of([example for _, (examples, _) in sources for example in examples])
    identities, errors = survey(paths, store, settings.workers)
    unread = {
        prompt: reason
        for prompt in {example.prompt for _, (examples, _) in sources for example in examples}
        if (reason := fault(prompt))
    }
    kept = [_usable(table, *found, errors, unread) for table, found in sources]
    count = len(settings.train)
    training = [example for examples, _ in kept[:count] for example in examples]
    validation = [example for examples, _ in kept[count:] for example in examples]
    near = settings.near_duplicates
    if not validation and settings.validation_share:
        training, validation = split_examples(training, identities, settings.validation_share, near=near, seed=seed)
    else:
        check_apart(training, validation, identities, near=near)
    if validation:
        check_judgeable(validation)
    records = tuple(record for _, record in kept)
    return Corpus(tuple(training), tuple(validation), identities, records[:count], records[count:])


def _usable(
    settings: TableSettings, examples: list[Item], missing: list[str], errors: dict[str, str], unread: dict[str, str]
) -> tuple[list[Item], TableRecord]:
    """The examples whose clips are all there, and what became of the others. Raises TableError where none may lack."""
    broken = {path: errors[path] for path in clips_of(examples) if path in errors}
    prompts = {example.prompt: unread[example.prompt] for example in examples if example.prompt in unread}
    if settings.unusable == "refuse" and (missing or broken or prompts):
        names = [f"{name}: not in {settings.videos}" for name in missing] + [*broken.values(), *prompts.values()]
        raise TableError(
            f"{settings.table}: {len(missing)} clips are missing, {len(broken)} cannot be decoded, and {len(prompts)} "
            f"prompts not be read: {'; '.join(names[:5])}. `unusable: skip` leaves their rows out"
        )
    kept = [
        example
        for example in examples
        if example.prompt not in prompts and not any(path in broken for path in example.videos)
    ]
    if not kept:
        raise TableError(f"{settings.table}: none of its rows can be used")
    if missing or broken or prompts:
        told = "%s: %d clips missing, %d not decoded, %d prompts not read"
        logger.warning(told, settings.table, len(missing), len(broken), len(prompts))
    local = fetch(settings)
    name = settings.table if settings.hub else Path(settings.table).name
    snapshot = Path(local.table).parents[len(Path(settings.table).parts) - 1].name if settings.hub else None
    sha256 = file_sha256(local.table)
    left_out = (tuple(missing), tuple(sorted(Path(path).name for path in broken)), tuple(sorted(prompts)))
    return kept, TableRecord(name, settings.kind, sha256, len(kept), settings.hub, snapshot, *left_out)
