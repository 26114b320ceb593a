"""The file of a run of `bench.run`: figures, and everything that they depend on. Written after every candidate, so that
a run can be cut short, and continued by another."""

import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from bench.registry import Candidate, Problem

RESULTS = Path(__file__).parent / "results"
#: Figures stand in one file only where these agree.
IDENTITY = ("device", "threads", "torch", "triton", "cuda", "hip", "cudnn", "driver", "tf32", "commit")


def environment(device: str, note: str) -> dict[str, Any]:
    """Everything that a figure depends on and that the machine tells. The commit is that of the environment variable
    BENCH_COMMIT where it is set, as for a copy of the tree without .git; None where neither tells."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "commit": os.environ.get("BENCH_COMMIT") or _output("git", "rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
        "note": note,
        "tf32": False,  # `Candidate.settings`
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
    return facts


def device_name(device: str | None = None) -> str:
    """Of "cuda" or "cpu", the latter with torch's threads; by default of a GPU if there is one."""
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return model[1] if model else platform.processor() or platform.machine()


def slug(name: str) -> str:
    """A device's name as a part of a file's."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


class Record:
    """The figures at `path`, those that are there already included. Raises ValueError where those are of another
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".part")
        written.write_text(json.dumps({**self.facts, "results": self.results}, indent=1) + "\n")
        written.replace(self.path)

    def _entries(self, problem: Problem, candidate: Candidate) -> list[dict[str, Any]]:
        named = (str(problem), candidate.name)
        return [entry for entry in self.results if (entry["problem"], entry["candidate"]) == named]
