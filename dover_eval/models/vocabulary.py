"""What of a tokenizer's vocabulary an encoder has learned as words.

An English vocabulary holds the letters of many scripts and the words of one: Chinese or Russian becomes known tokens
that mean nothing to the encoder.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

#: A script is only spelt where it has fewer different tokens than this, and a smaller share of the largest script's.
#: BERT's English vocabulary has over 20,000 Latin ones, and of Chinese, its second, 244.
LEAST_TOKENS, LEAST_SHARE = 400, 0.02


@dataclass(frozen=True)
class Vocabulary:
    """Ids of tokens: `words` mean something, `spelt` are letters of a script without words. Punctuation and special
    tokens, that of the unknown included, are neither."""

    words: frozenset[int]
    spelt: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        special = set(tokenizer.all_special_ids)
        letters = {
            index: [c for c in token if _category(c) in "LM"]
            for token, index in tokenizer.get_vocab().items()
            if index not in special and any(_category(c) not in "PZC" for c in token)
        }
        tokens: dict[str, set[str]] = defaultdict(set)
        for of_token in letters.values():
            for script in map(_script, of_token):
                tokens[script].add("".join(of_token))
        counts = {script: len(of_script) for script, of_script in tokens.items()}
        least = min(LEAST_TOKENS, LEAST_SHARE * max(counts.values(), default=0))
        spelt = {
            index
            for index, of_token in letters.items()
            if of_token and all(counts[_script(letter)] < least for letter in of_token)
        }
        return cls(frozenset(letters.keys() - spelt), frozenset(spelt))


@cache
def _category(character: str) -> str:
    """Letter, Mark, Number, Punctuation, Symbol, separator (Z) or other (C)."""
    return unicodedata.category(character)[0]


@cache
def _script(letter: str) -> str:
    """LATIN, CYRILLIC, CJK, ...: Unicode names begin with it."""
    return unicodedata.name(letter, "").partition(" ")[0]
