"""`dover-eval score`: clips from anywhere in, a table or a results file out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dover_eval.cli.exits import EXIT_FAILED, check_file, check_no_input, check_prompt, failure, needs, usage
from dover_eval.cli.options import BatchSize, CalibrationFile, Device, Model, Prompts
from dover_eval.cli.output import plain_table, said, say
from dover_eval.cli.progress import progress_bar
from dover_eval.config import usual_batch_size
from dover_eval.inputs import NoPromptError, list_clips, read_prompts, video_file_name
from dover_eval.opinion import SCORE_NAMES
from dover_eval.scale.run import (
    ROWS_SHOWN,
    Claim,
    Engine,
    Outcome,
    Share,
    cpu_count,
    score_in_memory,
    score_set,
    what_is_asked,
)
from dover_eval.scale.runlog import RunError, Scored, recorded, run_folder
from dover_eval.tables import SUFFIXES, TableError

if TYPE_CHECKING:
    from dover_eval.files import Clip


def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Videos, folders, quoted patterns such as 'out/**/*.mp4', manifests (.csv, .jsonl, .parquet), "
            "WebDataset shards (.tar); here or at s3://, hf://, https:// and other stores (docs/scale.md)."
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="One prompt for every clip that brings none.")] = None,
    prompts: Prompts = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=f"Write {', '.join(SUFFIXES)} as well.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run into --output was stopped.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume, score rows with errors again.")
    ] = False,
    model: Model = None,
    device: Device = None,
    calibration: CalibrationFile = None,
    batch_size: BatchSize = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode; by default one a core but one.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of the model on a CPU; by default 1: another number may change a score's last bits."),
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="ray scores on a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; by default one on this machine.")] = None,
    num_gpus: Annotated[
        int | None, typer.Option(min=0, help="With ray: scorers, one a GPU; by default all GPUs; 0 for CPUs.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Neither table nor progress.")] = False,
) -> None:
    """Score clips against their prompts.

    A clip that cannot be scored is a row with its error; the others go on. Exit status: 0 when every clip has its
    scores, 1 when some have not or the run could not go on, 2 when the command was not understood. Under torchrun each
    rank scores its share, and --resume is implied.
    """
    try:
        share = Share.of_environment()
    except ValueError as error:
        usage(error)
    resume = resume or share.world > 1
    if prompt is not None and prompts is not None:
        usage("give either --prompt TEXT or --prompts FILE.csv")
    check_prompt(prompt)
    check_file("--output", output, SUFFIXES)
    if output is None and (resume or retry_failed):
        usage("--resume, --retry-failed and several ranks need an --output")
    if retry_failed and not resume:
        usage("--retry-failed goes with --resume")
    _check_engine(engine, share, device, address, num_gpus)
    clips = _list(paths, prompt, prompts)
    check_no_input("--output", output, [*paths, *(clip.video for clip in clips), prompts, calibration])

    try:
        begun = recorded(output) if output is not None and resume else {}
        threads = threads or begun.get("threads", 1)
        batch_size = batch_size or begun.get("batch_size")
        run: Engine
        if engine == "ray":
            from dover_eval.scale.ray_engine import RayEngine

            cluster = RayEngine(model, calibration, threads=threads, address=address, num_gpus=num_gpus)
            batch_size = batch_size or usual_batch_size("cuda" if cluster.gpus else "cpu")
            run = cluster.on(clips, batch_size)
        else:
            from dover_eval.cli.loading import check_device
            from dover_eval.scorer import placement

            check_device(device)
            batch_size = batch_size or usual_batch_size(placement(device, None)[0].type)
            workers = workers or max(1, cpu_count() // share.local_world - 1)
            run = _local_engine(clips, batch_size, model, device, calibration, threads, workers, share)
        with progress_bar("scoring", len(clips), show=not quiet and share.rank == 0) as bar:
            if output is None:
                outcome = score_in_memory(len(clips), run, batch_size=batch_size, progress=bar.advance)
            else:
                outcome = score_set(
                    clips,
                    output,
                    run,
                    batch_size=batch_size,
                    settings={"threads": threads},
                    share=share,
                    resume=resume,
                    retry_failed=retry_failed,
                    asked=what_is_asked(model, device, calibration),
                    progress=bar.advance,
                )
    except (RunError, OSError) as error:
        failure(error)
    except KeyboardInterrupt:
        if output is not None:
            say(f"dover-eval: stopped; rows are safe in {run_folder(output)}: go on with --resume", err=True)
        raise
    if share.rank != 0:
        return  # rank 0 tells; and a rank that fails would make torchrun end the others
    if not quiet:
        _print(outcome, output)
    if outcome.failed:
        raise typer.Exit(EXIT_FAILED)


def _check_engine(engine: str, share: Share, device: str | None, address: str | None, num_gpus: int | None) -> None:
    if engine == "ray":
        needs("ray", "ray")
        if share.world > 1:
            usage("--engine ray and torchrun are two ways to the same: take one")
        if device is not None:
            usage("--device goes with --engine local; with ray, --num-gpus 0 scores on CPUs")
    elif address is not None or num_gpus is not None:
        usage("--address and --num-gpus go with --engine ray")


def _list(paths: list[str], prompt: str | None, prompts: Path | None) -> list[Clip]:
    """The clips, each with its prompt."""
    try:
        texts = read_prompts(prompts) if prompts is not None else None
        return list_clips(paths, prompt, texts)
    except NoPromptError as error:
        usage(str(error) if prompts is not None else f"give either --prompt TEXT or --prompts FILE.csv: {error}")
    except TableError as error:
        usage(error)


def _local_engine(
    clips: Sequence[Clip],
    batch_size: int,
    model: str | None,
    device: str | None,
    calibration: Path | None,
    threads: int,
    workers: int,
    share: Share,
) -> Engine:
    def run(batches: Sequence[int], claim: Claim) -> Iterator[Scored]:
        from dataclasses import asdict

        import torch

        from dover_eval.cli.loading import load_scorer
        from dover_eval.scale.local import score_batches

        at = device
        if at is None and share.world > 1 and torch.cuda.is_available():
            at = f"cuda:{share.local_rank % torch.cuda.device_count()}"
        torch.set_num_threads(threads)
        scorer = load_scorer(model, at, calibration)
        claim(asdict(scorer.fingerprint), str(scorer.fingerprint))
        yield from score_batches(scorer, clips, batches, batch_size, workers)

    return run


def _print(outcome: Outcome, output: Path | None) -> None:
    if outcome.clips <= ROWS_SHOWN or output is None:
        _print_table(outcome)
        return
    kept = f", {outcome.clips - outcome.scored} of them before" if outcome.scored < outcome.clips else ""
    failed = f", {outcome.failed} failed" if outcome.failed else ""
    say(f"{output}: {outcome.clips} clips{kept}{failed}; fingerprint {outcome.fingerprint}")


def _print_table(outcome: Outcome) -> None:
    from rich.console import Console

    table = plain_table(
        caption=f"from 1 (bad) to 5 (excellent); fingerprint {outcome.fingerprint}",
        caption_justify="left",
    )
    table.add_column("clip and prompt", overflow="fold")
    for name in SCORE_NAMES:
        table.add_column(name, justify="right", style="bold" if name == "Overall" else "", no_wrap=True)
    for row in outcome.rows:
        error = row["error"]
        below = said(row["Prompt"], "dim") if error is None else said(error, "red")
        cells: list[Any] = [said(video_file_name(row["video_name"])).append("\n").append_text(below)]
        cells += ["-" if error else f"{row[name]:.2f}" for name in SCORE_NAMES]
        table.add_row(*cells)
    Console().print(table)
