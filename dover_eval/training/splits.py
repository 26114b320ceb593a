"""What is learned and what is judged, apart by content: never by row, and never twice the same clip."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dover_eval.evaluation import Item
from dover_eval.training.clips import ClipIdentity, look_alikes
from dover_eval.training.tables import clips_of

Identities = Mapping[str, ClipIdentity]


class SplitError(ValueError):
    """Training and validation cannot be set apart, or nothing could be judged on the validation."""


class DuplicateError(SplitError):
    """The same clip, or nearly the same, on both sides of a split; the message names some."""


def split_examples(
    examples: Sequence[Item], identities: Identities, share: float, *, near: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """Training and validation: whole contents, drawn with `seed` until the validation has `share` of the examples.

    A content is what the tables call one; where they do not say, rows that share a file, a prompt, or clips that look
    alike (see `look_alikes`) are of one. Which contents are drawn does not depend on the order of the rows.

    Raises SplitError where no such split is left, as when everything is of one content; DuplicateError where the
    tables call one clip several contents, and these came apart.
    """
    groups = _contents(examples, identities, near)
    # A content is drawn by its clips' bytes: the tables' names and order may change.
    marks: dict[int, str] = {}
    for group, example in zip(groups, examples, strict=True):
        for video in example.videos:
            digest = hashlib.sha256(f"{seed} {identities[video].sha256}".encode()).hexdigest()
            marks[group] = min(marks.get(group, digest), digest)
    sizes = np.bincount(groups)
    wanted, chosen, count = share * len(examples), set[int](), 0
    for group in sorted(marks, key=lambda g: marks[g]):
        # A content that would overshoot by more than is lacking is left to the training.
        if count + sizes[group] - wanted <= wanted - count:
            chosen.add(group)
            count += int(sizes[group])
    chosen = chosen or {min(marks, key=lambda g: (sizes[g], marks[g]))}
    training = [example for group, example in zip(groups, examples, strict=True) if group not in chosen]
    validation = [example for group, example in zip(groups, examples, strict=True) if group in chosen]
    if not training or not validation:
        raise SplitError(
            f"{len(examples)} rows are of {len(marks)} contents: too few to set {share:.0%} apart. Name validation "
            "tables, or train without validation (validation_share: 0)"
        )
    column = "The column `content` sets their rows apart: give them the same content"
    check_apart(training, validation, identities, near=near, remedy=column)
    return training, validation


def check_apart(
    training: Sequence[Item],
    validation: Sequence[Item],
    identities: Identities,
    *,
    near: float,
    remedy: str = "Take them out of one of the two",
) -> None:
    """Raise DuplicateError where a clip of one side is on the other: the same bytes, or nearly the same frames."""
    first, second = clips_of(training), clips_of(validation)
    by_content = {identities[path].sha256: path for path in first}
    same = [(by_content[identities[p].sha256], p) for p in second if identities[p].sha256 in by_content]
    alike = look_alikes([identities[p] for p in first], [identities[p] for p in second], near)
    known = set(same)
    close = [pair for pair in ((first[i], second[j]) for i, j in alike) if pair not in known]
    for found, what in ((same, "the same bytes"), (close, "nearly the same frames")):
        if found:
            names = "; ".join(f"{a} and {b}" for a, b in found[:3])
            raise DuplicateError(
                f"{len(found)} clips of the validation are in the training as well, with {what}: {names}. "
                f"{remedy}" + ("" if found is same else ", or set near_duplicates to 0 if they are different clips")
            )


def _contents(examples: Sequence[Item], identities: Identities, near: float) -> list[int]:
    """The content of each example, as a number."""
    nodes: dict[tuple[str, str], int] = {}
    links: list[tuple[int, int]] = []
    node = lambda kind, name: nodes.setdefault((kind, name), len(examples) + len(nodes))
    clips = clips_of([example for example in examples if example.content is None])
    for i, example in enumerate(examples):
        if example.content is not None:
            links.append((i, node("content", example.content)))
            continue
        links.append((i, node("prompt", " ".join(example.prompt.casefold().split()))))
        links += [(i, node("file", identities[video].sha256)) for video in example.videos]
    known = [identities[path] for path in clips]
    links += [
        (node("file", known[a].sha256), node("file", known[b].sha256)) for a, b in look_alikes(known, known, near)
    ]
    rows, columns = np.array(links).T
    size = len(examples) + len(nodes)
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(examples)].tolist()
