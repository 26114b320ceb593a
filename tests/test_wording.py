"""What a reader is told of errors."""

from __future__ import annotations

import pytest

from dover_eval.wording import one_line


@pytest.mark.parametrize(
    ("error", "alone", "with_kind"),
    [
        (ValueError("two\n  lines"), "two lines", "ValueError: two lines"),
        (MemoryError(), "MemoryError", "MemoryError"),
    ],
)
def test_an_error_takes_one_line_and_is_never_empty(error, alone, with_kind):
    assert one_line(error) == alone
    assert one_line(error, kind=True) == with_kind
