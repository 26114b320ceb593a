"""Counts, errors, foreign texts and missing figures in what a reader, or a reader of JSON, is told."""

from __future__ import annotations

import math
import re
from typing import Any


def plural(count: int, noun: str) -> str:
    """'1 clip', '2,000 clips'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(error: BaseException, *, kind: bool = False) -> str:
    """What an error says; its kind goes before it where `kind` asks for it, and stands alone where it says nothing."""
    text = " ".join(str(error).split())
    if text and not kind:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def plain(text: str) -> str:
    """A name or a prompt as a terminal may have it: control characters are spelled out, for they could move its cursor,
    set its title or rewrite what was said before."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found.group().encode("unicode_escape").decode(), text)


def without_nan(value: Any) -> Any:
    """Dictionaries, lists and tuples as JSON has them: NaN, which it has no word for, is None."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
