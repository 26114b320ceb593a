"""The files of all benchmarks: figures, and everything that they depend on."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.registry import Candidate, Problem

RESULTS = Path(__file__).parent / "results"
#: Figures stand in one file only where these agree.
IDENTITY = ("device", "threads", "torch", "triton", "cuda", "hip", "cudnn", "driver", "tf32", "commit")


def environment(device: str, note: str, *packages: str) -> dict[str, Any]:
    """Everything that a figure depends on and that the machine tells, before anything is measured. `packages` are those
    whose versions matter beside torch's and Triton's. The commit is that of the environment variable BENCH_COMMIT where
    it is set, as for a copy of the tree without .git; None where neither tells."""
    facts: dict[str, Any] = {
        "command": _command(),
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "commit": os.environ.get("BENCH_COMMIT") or _output("git", "rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
        "note": note,
    }
    if device == "cuda":
        facts |= {
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
        }
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    return facts | {name: version(name) for name in packages}


def usual_device() -> str:
    """ "cuda" where torch sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """Of "cuda" or "cpu", the latter with torch's threads."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{_cpu_name()}, {torch.get_num_threads()} threads"


def results_file(device: str, kind: str = "") -> Path:
    """Where figures of `device`, "cuda" or "cpu", belong; `kind` is the benchmark's name, which the operator's lack."""
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", f"{kind} {device_name(device)}".lower()).strip("-") + ".json")


def save(path: Path, document: dict[str, Any]) -> None:
    """The whole document or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def _command() -> str:
    module = sys.modules["__main__"].__spec__
    return shlex.join(["python", *(["-m", module.name] if module else sys.argv[:1]), *sys.argv[1:]])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return model[1] if model else platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


class Record:
    """The operator's figures at `path`, those that are there already included. Written after every candidate, so that a
    run can be cut short, and continued by another. Raises ValueError where figures that are there are of another
    device, other versions or another commit, unless they are to be forgotten."""

    def __init__(self, path: Path, facts: dict[str, Any], again: bool = False) -> None:
        self.path, self.facts = path, facts
        self.results: list[dict[str, Any]] = []
        if again or not path.exists():
            return
        before = json.loads(path.read_text())
        for name in IDENTITY:
            if before.get(name) != facts.get(name):
                raise ValueError(
                    f"{path} holds figures with {name} {before.get(name)}, and here it is {facts.get(name)}: "
                    "--again replaces all of them, --output writes elsewhere"
                )
        self.results = before["results"]
        notes = dict.fromkeys(note for note in (before["note"], facts["note"]) if note)
        self.facts = facts | {"note": "; ".join(notes)}

    def has(self, problem: Problem, candidate: Candidate) -> bool:
        return bool(self._entries(problem, candidate))

    def put(self, entries: list[dict[str, Any]]) -> None:
        """Takes all there is of a candidate on a problem, and writes the file."""
        self.results += entries
        save(self.path, {**self.facts, "results": self.results})

    def _entries(self, problem: Problem, candidate: Candidate) -> list[dict[str, Any]]:
        named = (str(problem), candidate.name)
        return [entry for entry in self.results if (entry["problem"], entry["candidate"]) == named]
