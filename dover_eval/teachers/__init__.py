"""Teachers for `dover-eval label`: those that run anywhere, and adapters that import what they adapt when asked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """What `dover-eval label --list` tells of a teacher."""

    judges: str
    needs: str
    licence: str


TEACHERS: dict[str, Known] = {}
