"""From a YAML file to a dataclass: every key known, every value of its type, and errors that say where."""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dover_eval.wording import one_line


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the file, the key, what was found and what was expected."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises SettingsError for one that cannot be read or gives a key twice."""
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), _unique_keys())
    # PyYAML lets through what Python says of a date that is none, of a number or a word that is none, and of depth.
    except (OSError, yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise SettingsError(f"{path}: cannot be read ({one_line(error)})") from error


def parse(kind: Any, found: Any, key: str, source: str) -> Any:
    """`found` as a `kind`: a dataclass, a tuple, a union with None, a literal, a mapping or a plain type.

    `key` is where in the file `source` it stands. A dataclass's own ValueError becomes a SettingsError of that place.
    """
    refuse = lambda text: SettingsError(f"{source}: {key + ': ' if key else ''}{text}")
    # Not its whole repr: a few aliases of YAML can stand for millions of words.
    unlike = lambda wanted: refuse(f"expected {wanted}, got {reprlib.repr(found):.200}")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(found, Mapping):
            raise unlike(f"a mapping with {', '.join(hints)}")
        path = lambda name: f"{key}.{name}" if key else str(name)
        for name in found:
            if name not in hints:
                raise SettingsError(f"{source}: {path(name)}: unknown key; expected some of {', '.join(hints)}")
        for entry in dataclasses.fields(kind):
            required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
            if required and entry.name not in found:
                raise SettingsError(f"{source}: {path(entry.name)}: missing, and has no default")
        values = {name: parse(hints[name], value, path(name), source) for name, value in found.items()}
        try:
            return kind(**values)  # type: ignore[operator]
        except ValueError as error:
            raise refuse(str(error)) from error
    if origin in (types.UnionType, typing.Union):
        if found is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return parse(inner, found, key, source)
    if origin is tuple:
        if not isinstance(found, list | tuple):
            raise unlike("a list")
        if arguments[-1] is not Ellipsis and len(found) != len(arguments):
            raise refuse(f"expected {len(arguments)} values, got {len(found)}")
        inner = arguments[:1] * len(found) if arguments[-1] is Ellipsis else arguments
        return tuple(parse(t, v, f"{key}[{i}]", source) for i, (t, v) in enumerate(zip(inner, found, strict=True)))
    if origin is Literal:
        if found not in arguments:
            raise unlike(f"one of {', '.join(map(str, arguments))}")
        return found
    if kind is float and not isinstance(found, bool) and isinstance(found, int | float | str):
        try:
            return float(found)  # YAML reads 1e-4, which lacks a point, as a text
        except (ValueError, OverflowError):
            pass
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(found, Mapping):
            return dict(found)
    elif isinstance(found, kind) and (kind is bool or not isinstance(found, bool)):
        return found
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}.get(kind, "a mapping")
    raise unlike(wanted)


def _unique_keys() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML that refuses a key given twice, of which the last would win in silence."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            seen = set()
            for name, _ in node.value:
                if not isinstance(name, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key that is not a scalar", name.start_mark)
                if name.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{name.value!r} twice", name.start_mark)
                seen.add(name.value)
            return super().construct_mapping(node, deep)

    return Loader
