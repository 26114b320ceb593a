"""Draws the plot and prints the table of `bench/results/*.json`.

python -m bench.report                            the table of every device, in Markdown
python -m bench.report --summary                  how often ours fits into others' time
python -m bench.report --plot bench/results       and <device>.svg beside its results
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench.record import RESULTS
from bench.registry import Problem

OURS, FLOOR, EAGER = "dover", "copy", "eager NCDHW"


def table(report: dict[str, Any], direction: str) -> str:
    """One row a problem: our time, the fastest other's, how often ours fits into it and into that of eager NCDHW, the
    shares that we reach of the largest copy's rate and of the FFMA peak, and both peaks of memory. A time carries its
    spread, from the 20th to the 80th percentile, and an asterisk where it alone was taken without a graph, with its
    launches."""
    graphs, rate = has_graphs(report), copy_rate(report)
    lines = [
        "| problem | ours, ms | fastest other, ms | which | ratio | eager | of copy | of FFMA peak | memory, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for problem, timed in by_problem(report, direction).items():
        others = {name: entry for name, entry in timed.items() if name not in (OURS, FLOOR)}
        if OURS not in timed or not others:
            lines.append(f"| {problem} | not timed | | | | | | | |")
            continue
        best = min(others, key=lambda name: others[name]["median_ms"])
        ours, theirs = timed[OURS], others[best]
        ratio = f"{theirs['median_ms'] / ours['median_ms']:.2f}"
        eager = f"{timed[EAGER]['median_ms'] / ours['median_ms']:.1f}" if EAGER in timed else ""
        copied = Problem.named(problem).bytes(direction) / ours["median_ms"] / rate if rate else None
        shares = [_percent(share) for share in (copied, ours.get("ffma_share"))]
        peaks = [entry["peak_bytes"] for entry in (ours, theirs)]
        memory = "" if None in peaks else " / ".join(f"{peak / 2**20:.0f}" for peak in peaks)
        row = (problem, _time(ours, graphs), _time(theirs, graphs), best, ratio, eager, *shares, memory)
        lines.append("| " + " | ".join(row) + " |")
    text = "\n".join(lines)
    return f"{text}\n\n\\* timed with its launches: it could not be captured in a graph" if "\\*" in text else text


def summary(report: dict[str, Any]) -> str:
    """One row a problem: in both directions our time, and how often it fits into the fastest other's and eager's."""
    cells = "ours, ms | fastest other | eager NCDHW"
    lines = [f"| problem | forward: {cells} | training: {cells} |", "|---" * 7 + "|"]
    forward, training = (by_problem(report, direction) for direction in ("forward", "training"))
    for problem in forward:
        row = [problem]
        for timed in (forward[problem], training.get(problem, {})):
            ours = timed.get(OURS, {}).get("median_ms")
            others = {name: entry["median_ms"] for name, entry in timed.items() if name not in (OURS, FLOOR)}
            row.append(f"{ours:.3f}" if ours else "")
            for theirs in (min(others.values(), default=None), others.get(EAGER)):
                row.append(f"{theirs / ours:.1f} x" if theirs and ours else "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def copy_rate(report: dict[str, Any]) -> float | None:
    """Bytes a millisecond of the largest copy, the fastest of several, or None without one. A small copy is no measure:
    most of its time is what a launch takes that moves nothing."""
    copies = [
        (Problem.named(problem).bytes("forward"), timed[FLOOR]["median_ms"])
        for problem, timed in by_problem(report, "forward").items()
        if FLOOR in timed
    ]
    most = max((moved for moved, _ in copies), default=0)
    return most / min(time for moved, time in copies if moved == most) if copies else None


def has_graphs(report: dict[str, Any]) -> bool:
    """Whether a time without a graph stands beside others with one."""
    return any(entry.get("graph") for entry in report["results"])


def _time(entry: dict[str, Any], graphs: bool) -> str:
    mark = "\\*" if graphs and not entry["graph"] else ""
    return f"{entry['median_ms']:.3f}{mark} ({entry['p20_ms']:.3f}-{entry['p80_ms']:.3f})"


def by_problem(report: dict[str, Any], direction: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The results of one direction, by problem and candidate; those that were not timed are left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in report["results"]:
        if entry.get("direction") == direction:
            found.setdefault(entry["problem"], {})[entry["candidate"]] = entry
    return found


def not_timed(report: dict[str, Any]) -> list[str]:
    """A line for each that failed: the fastest other of its table may be one that would have lost to it."""
    failed = [entry for entry in report["results"] if "not_timed" in entry]
    return [f"- {e['problem']}, {e['candidate']}: {e['not_timed'].splitlines()[0]}" for e in failed]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def plot(report: dict[str, Any], path: Path) -> None:
    """Speed relative to the fastest other, a bar a problem, forward and training; an asterisk as in the table."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, direction in zip(axes, ("forward", "training"), strict=True):
        names, ratios = [], []
        for problem, timed in by_problem(report, direction).items():
            others = [entry for name, entry in timed.items() if name not in (OURS, FLOOR)]
            if OURS in timed and others:
                ours, best = timed[OURS], min(others, key=lambda entry: entry["median_ms"])
                names.append(
                    f"{problem} *" if has_graphs(report) and not (ours["graph"] and best["graph"]) else problem
                )
                ratios.append(best["median_ms"] / ours["median_ms"])
        axis.barh(names, ratios)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set(title=direction, xlabel="times the speed of the fastest other")
    axes[0].invert_yaxis()  # of both: they share it
    figure.suptitle(f"{report['device']}, torch {report['torch']}, Triton {report['triton']}")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="folder for the plots, which need the extra `bench`")
    parser.add_argument("--summary", action="store_true", help="the short table in place of the long ones")
    options = parser.parse_args()
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text())
        if not any("candidate" in entry for entry in report.get("results", [])):
            continue  # another benchmark's
        print(f"## {report['device']}\n\ntorch {report['torch']}, Triton {report['triton']}. {report['note']}\n")
        if options.summary:
            print(summary(report), end="\n\n")
        for direction in () if options.summary else ("forward", "training"):
            print(f"### {direction}\n\n{table(report, direction)}\n")
        if failed := not_timed(report):
            print("### not timed\n", *failed, "", sep="\n")
        if options.plot:
            plot(report, options.plot / f"{path.stem}.svg")


if __name__ == "__main__":
    main()
