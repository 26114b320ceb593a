"""A checkpoint from a human-rated data set, in one command: fetch, convert, train.

    python -m examples.recipes rapidata --work runs/rapidata
    python -m examples.recipes rapidata datapoint videofeedback mj_bench_video --work runs/all
    python -m examples.recipes videofeedback --work runs/fresh --fresh
    python -m examples.recipes rapidata --work runs/mine --source rapidata=/data/rapidata

`WORK/train.yaml` is what `dover-eval train` is given: one of the files here, or several with their tables together;
edit it and give that command `--resume` or another output. `--prepare` stops before it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from examples.recipes.tables import SchemaError

HERE = Path(__file__).parent
RECIPES = ("rapidata", "datapoint", "videofeedback", "mj_bench_video")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=RECIPES, metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--work", type=Path, required=True, help="the folder for data, settings and checkpoint")
    parser.add_argument("--source", action="append", default=[], metavar="RECIPE=FOLDER", help="a copy that is there")
    parser.add_argument("--fresh", action="store_true", help="from random weights, not from ImageNet's ConvNeXt")
    parser.add_argument("--prepare", action="store_true", help="stop before the training")
    arguments = parser.parse_args()
    work, sources = arguments.work, {}
    for given in arguments.source:
        recipe, _, source = given.partition("=")
        if recipe not in arguments.recipes or not source or not Path(source).is_dir():
            parser.error(f"--source {given}: expected a recipe that is asked for, and a folder that is there")
        place = work / recipe / "source"
        if place.exists() and not place.samefile(source):
            parser.error(f"--source {given}: {place} is another folder; name another --work, or remove it")
        sources[recipe] = Path(source)
    try:
        for recipe in arguments.recipes:
            rows = prepare(recipe, work / recipe, sources.get(recipe))
            print(f"{recipe}: {rows} rows")
    except (SchemaError, OSError) as error:  # the hub's errors are OSErrors
        print(f"examples.recipes: {error}", file=sys.stderr)
        return 1
    settings = work / "train.yaml"
    settings.write_text(yaml.safe_dump(combine(arguments.recipes, fresh=arguments.fresh), sort_keys=False))
    command = [sys.executable, "-m", "dover_eval", "train", str(settings)]
    print(" ".join(command[1:]))
    return 0 if arguments.prepare else subprocess.run(command, check=False).returncode


def prepare(recipe: str, folder: Path, source: Path | None = None) -> int:
    """Fetch a recipe's repositories, unless all are there, and convert them. The number of rows."""
    converter = import_module(f"examples.recipes.{recipe}")
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "source"
    if source is not None and not place.exists():
        place.symlink_to(source.resolve(), target_is_directory=True)
    if not place.exists():
        from huggingface_hub import snapshot_download

        part = folder / "source.part"  # what was cut off goes on there
        for repository in converter.REPOSITORIES:
            snapshot_download(repository, repo_type="dataset", local_dir=part / repository.split("/")[1])
        part.rename(place)
    return converter.convert(place, folder)


def combine(recipes: list[str], *, fresh: bool = False) -> dict[str, Any]:
    """The settings of the first recipe, with the tables and the notes of all."""
    found = [yaml.safe_load((HERE / f"{recipe}.yaml").read_text(encoding="utf-8")) for recipe in recipes]
    settings = found[0]
    settings["data"]["train"] = [table for one in found for table in one["data"]["train"]]
    settings["card"]["notes"] = "\n".join(one["card"]["notes"] for one in found)
    if fresh:
        del settings["start"]
    return settings


if __name__ == "__main__":
    sys.exit(main())
