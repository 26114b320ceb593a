"""Counts and foreign texts in what a reader is told."""

from __future__ import annotations

import re


def plural(count: int, noun: str) -> str:
    """'1 clip', '2,000 clips'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plain(text: str) -> str:
    """A name or a prompt as a terminal may have it: control characters are spelled out, for they could move its cursor,
    set its title or rewrite what was said before."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found.group().encode("unicode_escape").decode(), text)
