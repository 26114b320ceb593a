"""The model card of a run, written from what the run recorded and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from dover_eval.evaluation import EvaluationReport, RatingMetrics
from dover_eval.opinion import SCORE_NAMES
from dover_eval.training.settings import LossSettings

KINDS: tuple[Literal["ratings", "verdicts"], ...] = ("ratings", "verdicts")
ALWAYS = ("seed", "learning_rate", "batch_size", "accumulate")


def write_card(folder: Path, record: Mapping[str, Any], report: EvaluationReport | None) -> None:
    """`README.md` in `folder`, from a run's record (see `dover_eval.training.run`) and its validation figures."""
    card = record["settings"]["card"]
    head = {"license": card["licence"], "library_name": "dover-eval", "tags": ["video-quality-assessment", "video"]}
    named = {"license_name": card["licence_name"], "license_link": card["licence_link"]}
    head |= {name: value for name, value in named.items() if value}
    hubs = sorted({table["hub"] for table in record["data"] if table["hub"]})
    head |= {"datasets": hubs} if hubs else {}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {card['title'] or folder.name}",
        _what(record),
        card["notes"].strip(),
        "## What it was trained on",
        _data(record),
        "## How",
        _how(record),
        "## What it measured",
        _figures(record, report),
        f"Made by dover-eval {record['versions']['dover_eval']}; `training.json` has the whole record.",
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _what(record: Mapping[str, Any]) -> str:
    model = record["model"]
    height, width = model["frame_size"]
    sees = f"; picture encoder {model['semantic_encoder']} (sha256 `{model['semantic_encoder_sha256']}`), which is not"
    return (
        f"{model['parameters'] / 1e6:.1f} M parameters, {model['num_frames']} frames of {height}x{width}; text encoder "
        f"{model['text_encoder']} (sha256 `{model['text_encoder_sha256']}`)"
        + (", whose trained weights are" if model["text_encoder_trained"] else ", which is not")
        + " part of this checkpoint"
        + (f"{sees}." if model["semantic_encoder"] else ".")
        + f" Weights `{record['fingerprint']['weights'][:12]}`. It began with {record['start']}."
    )


def _data(record: Mapping[str, Any]) -> str:
    lines = [
        "| side | table | kind | rows used | clips missing | clips not decoded | prompts not read | sha256 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for table in record["data"]:
        name = table["table"] + (f" of {table['hub']}, {table['revision'][:12]}" if table["hub"] else "")
        left_out = [len(table[kind]) for kind in ("missing", "unreadable", "unread")]
        cells = (table["rows"], *left_out, f"`{table['sha256']}`")
        lines.append(f"| {table['side']} | {name} | {table['kind']} | {' | '.join(map(str, cells))} |")
    told = [_side(side, counts) for side, counts in record["counts"].items() if counts["rows"]]
    losses = LossSettings(**record["settings"]["losses"])
    untaught = [name for name in SCORE_NAMES if not _taught(record["counts"]["training"], losses, name)]
    if untaught:
        told.append(f"**Nobody's opinion taught {', '.join(untaught)}**: what the model gives there means nothing yet.")
    return "\n".join(lines) + "\n\n" + "\n\n".join(told)


def _side(side: str, counts: Mapping[str, Any]) -> str:
    parts = [f"{counts['rows']} rows, {counts['clips']} clips, {counts['prompts']} prompts"]
    for kind in KINDS:
        if counts[kind]:
            parts.append(f"{kind}: " + ", ".join(f"{name} {count}" for name, count in counts[kind].items()))
    return f"{side.capitalize()}: {'; '.join(parts)}."


def _taught(counts: Mapping[str, Any], losses: LossSettings, name: str) -> bool:
    """Whether ratings or verdicts that a loss reads reach a score; Overall also teaches the four that it is made of."""
    known = {score for kind in KINDS if losses.read(kind) for score in counts[kind]}
    return name in known or (name != "Overall" and "Overall" in known)


def _how(record: Mapping[str, Any]) -> str:
    settings = record["settings"]
    losses = ", ".join(f"{name} {value:g}" for name, value in settings["losses"].items() if isinstance(value, float))
    loop = settings["training"]
    told = ", ".join(f"{name} {loop[name]}" for name in ALWAYS)
    best = f"; the best of its validations, at step {record['best_step']}, was kept" if record["best_step"] else ""
    split = settings["data"]
    apart = (
        "No validation was set apart."
        if not record["counts"]["validation"]["rows"]
        else "Validation tables were given."
        if split["validation"]
        else f"{split['validation_share']:.0%} of the contents were set apart for validation, whole."
    )
    return (
        f"{record['steps']} steps on {record['device']}, {record['precision']}, {told}, processes "
        f"{record['processes']}{best}. Losses, their weights and settings: {losses}; preferences by the model "
        f"{settings['losses']['preference_model']!r}. "
        f"{apart} Clips on both sides with the same bytes, or alike in all but {split['near_duplicates']:.0%} of 256 "
        "bits of a perceptual hash, are refused."
    )


def _figures(record: Mapping[str, Any], report: EvaluationReport | None) -> str:
    if report is None:
        return "Nothing: there was no validation. Do not trust its scores before you have measured them."
    if not report.aspects:
        return f"Nothing: {len(report.failed)} clips of the validation could not be scored again, which left too few."
    lines = []
    rated = {name: found for name, found in report.aspects.items() if isinstance(found, RatingMetrics)}
    judged = {name: found for name, found in report.aspects.items() if not isinstance(found, RatingMetrics)}
    level = next(found.level for found in report.aspects.values())
    if rated:
        lines += [
            "| score | ratings | SROCC | PLCC | KRCC | RMSE, fitted | (SROCC + PLCC) / 2 |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, found in rated.items():
            cells = (found.srocc, found.plcc, found.krcc, found.rmse_fit, found.challenge)
            lines.append(f"| {name} | {found.count} | {' | '.join(map(str, cells))} |")
    if judged:
        lines += ["", "| score | pairs | ties | accuracy without ties | with ties |", "|---|---|---|---|---|"]
        for name, pairs in judged.items():
            lines.append(f"| {name} | {pairs.count} | {pairs.ties} | {pairs.without_ties} | {pairs.with_ties} |")
    left = [f"{name}: {reason}." for name, reason in report.left_out.items()]
    clips = record["counts"]["validation"]["clips"]
    return (
        f"On the {clips} clips of the validation, with {level:.0%} bootstrap intervals in brackets; the checkpoint was "
        "chosen on these very clips, which flatters.\n\n"
        + "\n".join(lines).strip()
        + ("\n\n" + " ".join(left) if left else "")
    )
