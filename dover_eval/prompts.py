"""What a prompt is: a text with something to read in it. Without torch, so that a command can say so at once."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


def prompt_fault(prompt: Any) -> str | None:
    """Why `prompt` is not a valid prompt, or None if it is."""
    if not isinstance(prompt, str):
        return f"a {type(prompt).__name__}"
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can bring
        return f"not UTF-8, {error.reason}"
    # A letter, number, sign or symbol, or what this Python's tables do not know yet; not spaces, controls, or marks and
    # selectors that need one.
    if not any((kind := unicodedata.category(letter))[0] in "LNPS" or kind in ("Cn", "Co") for letter in prompt):
        return "nothing to read in it"
    return None


def next_different(prompts: Sequence[str]) -> list[int | None]:
    """For each prompt the position of the next one that differs, going around; None where all are the same."""
    n, following = len(prompts), None
    found: list[int | None] = [None] * n
    for i in reversed(range(2 * n)):  # twice around: what follows the last is known when it comes up again
        after = (i + 1) % n
        if prompts[after] != prompts[i % n]:
            following = after
        found[i % n] = following
    return found
