"""What a teacher is: any scorer whose verdicts a rating table can hold, with the scale that they are on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from dover_eval.hashing import file_sha256
from dover_eval.opinion import SCORE_NAMES, to_mos


class TeacherError(RuntimeError):
    """A teacher that cannot be loaded; the message says why, and how to get it."""


@dataclass(frozen=True)
class Linear:
    """`worst` becomes 1 and `best` 5, a straight line between. A value beyond either, but for rounding, is refused."""

    worst: float
    best: float

    def __post_init__(self) -> None:
        _floats(self)
        if not (math.isfinite(self.worst) and math.isfinite(self.best)) or self.worst == self.best:
            raise ValueError(f"expected two different numbers for the worst and the best, got {self}")

    def mos(self, value: float) -> float:
        """`value` in [1,5]. Raises ValueError where it is not between worst and best."""
        return to_mos(value, self.worst, self.best)


@dataclass(frozen=True)
class Logistic:
    """For unbounded scores: `center` becomes 3, and `width` to either side of it 3.92 and 2.08."""

    center: float
    width: float

    def __post_init__(self) -> None:
        _floats(self)
        if not (math.isfinite(self.center) and math.isfinite(self.width)) or self.width <= 0:
            raise ValueError(f"expected a finite center and a positive width, got {self}")

    def mos(self, value: float) -> float:
        """`value` in [1,5]."""
        return 3 + 2 * math.tanh((value - self.center) / self.width / 2)


Scale = Linear | Logistic


def _floats(scale: Scale) -> None:
    """0 and 0.0 are one scale, and have one fingerprint."""
    for name, value in asdict(scale).items():
        object.__setattr__(scale, name, float(value))


def parse_scale(text: str) -> Scale:
    """`WORST:BEST` or `logistic:CENTER:WIDTH`. Raises ValueError for anything else."""
    kind, numbers = (Logistic, text.removeprefix("logistic:")) if text.startswith("logistic:") else (Linear, text)
    try:
        first, second = map(float, numbers.split(":"))
    except ValueError:
        raise ValueError(f"expected WORST:BEST or logistic:CENTER:WIDTH, got {text!r}") from None
    return kind(first, second)


class Teacher(Protocol):
    """A callable that judges a file against its prompt, or a class whose instances do.

    A class is called once in every worker process, with the options of the command line, so that a model is loaded
    once. A plain function is used as it is; its scales come from an attribute or from `--scale`.

    scales: by score name, what the numbers mean. A score without a scale is refused, so that none reaches the table
        without saying how it was mapped to 1-5.
    identity: optional; whatever besides options and source decides a verdict, such as the hash of the weights. Fit for
        JSON. It enters the fingerprint, by which two teachers are told apart.
    inputs: optional, a method; for a clip's path, the other files that its verdict is made from, such as its original.
        Where one of them changes, the clip is asked about again.
    """

    scales: Mapping[str, Scale]

    def __call__(self, path: str, prompt: str) -> Mapping[str, float | None]:
        """Scores by name, on the teacher's own scale; those that it cannot tell are absent or None.

        `path` is absolute. Whatever it raises becomes the error of this clip's row.
        """


def load_teacher(name: str, options: Mapping[str, Any]) -> Teacher:
    """The teacher `module:callable`, installed or in this folder; `options` go to a class. Raises TeacherError."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise TeacherError(f"expected a teacher as module:callable, got {name!r}")
    if os.getcwd() not in sys.path:  # behind what is installed: a folder of clips may hold a cv2.py of somebody's
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise TeacherError(f"{module_name} cannot be imported: {error}") from error
    made: Any = getattr(found, attribute, None)
    if not callable(made):
        raise TeacherError(f"{module_name} has no callable {attribute}")
    if not isinstance(made, type):
        if options:
            raise TeacherError(f"{name} is a function: options and devices go with a class, got {', '.join(options)}")
        return made
    try:
        inspect.signature(made).bind(**options)
    except TypeError as error:
        raise TeacherError(f"{name}: {error}; it takes {inspect.signature(made)}") from error
    teacher: Any = made(**options)
    if not callable(teacher):
        raise TeacherError(f"{name} has no __call__(path, prompt)")
    return teacher


@contextlib.contextmanager
def requires(install: str, licence: str) -> Iterator[None]:
    """Around a teacher's imports: what is missing is said with the line that installs it, and its licence."""
    try:
        yield
    except ImportError as error:
        raise TeacherError(f"{error}. Install it with: {install}. Licence: {licence}") from error


@dataclass(frozen=True)
class Description:
    """What decides a teacher's verdicts besides clip and prompt; equal descriptions may fill one table."""

    teacher: str
    options: Mapping[str, Any]
    scales: Mapping[str, Mapping[str, Any]]
    identity: Mapping[str, Any]
    source: str | None  # sha256 of the file that defines it

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def declared_scales(teacher: Teacher, name: str, given: Mapping[str, Scale]) -> dict[str, Scale]:
    """The scales of a teacher; those of the command line come first. Raises TeacherError where there are none."""
    scales = {**getattr(teacher, "scales", {}), **given}
    if not scales:
        raise TeacherError(
            f"{name} declares no scales: give it an attribute scales = {{'Overall': Linear(worst, best)}}, or say "
            "--scale Overall=WORST:BEST"
        )
    if unknown := [aspect for aspect in scales if aspect not in SCORE_NAMES]:
        raise TeacherError(f"{name}: expected scales for any of {', '.join(SCORE_NAMES)}, got {', '.join(unknown)}")
    for aspect, scale in scales.items():
        if type(scale) not in (Linear, Logistic):  # the journal could not say what another one does
            raise TeacherError(f"{name}: expected a Linear or a Logistic for {aspect}, got {scale!r}")
    return {aspect: scales[aspect] for aspect in SCORE_NAMES if aspect in scales}


def describe(teacher: Teacher, name: str, options: Mapping[str, Any], scales: Mapping[str, Scale]) -> Description:
    """The description of a loaded teacher. Raises TeacherError where its identity is not fit for JSON."""
    description = Description(
        teacher=name,
        options=dict(options),
        scales={aspect: {"kind": type(scale).__name__, **asdict(scale)} for aspect, scale in scales.items()},
        identity=dict(getattr(teacher, "identity", {})),
        source=_source(teacher, name),
    )
    try:
        # As the journal gives it back, in which a tuple is a list.
        return Description(**json.loads(json.dumps(asdict(description), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise TeacherError(f"{name}: options and identity must be fit for JSON ({error})") from error


def _source(teacher: Any, name: str) -> str | None:
    """sha256 of the file that defines a teacher, under its decorators and what else is wrapped around it, and of the
    module by whose name it was asked for, if that is another one. None for what a compiled extension defines."""
    code = inspect.unwrap(teacher)
    while isinstance(code, functools.partial):
        code = inspect.unwrap(code.func)
    files = [getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)]
    with contextlib.suppress(TypeError):  # made by an extension
        files.append(inspect.getsourcefile(code if inspect.isroutine(code) else type(code)))
    digests = sorted({file_sha256(file) for file in files if file})
    if len(digests) > 1:
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    return digests[0] if digests else None


def judge(teacher: Teacher, scales: Mapping[str, Scale], path: str, prompt: str) -> dict[str, float]:
    """The teacher's own numbers by score name. Raises what it raises, and ValueError for what is no verdict."""
    verdict = teacher(path, prompt)
    if not isinstance(verdict, Mapping):
        raise ValueError(f"the teacher gave a {type(verdict).__name__}, expected scores by name")
    values = {}
    for aspect, value in verdict.items():
        if aspect not in scales:
            raise ValueError(f"the teacher gave {aspect}, whose scale is not declared; declared: {', '.join(scales)}")
        if value is None:
            continue
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
        if not math.isfinite(number):
            raise ValueError(f"the teacher gave {value!r} for {aspect}, expected a number or None")
        scales[aspect].mos(number)  # refuses what is beyond the scale
        values[aspect] = number
    return values
