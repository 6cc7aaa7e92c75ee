"""Score a model at every guidance scale of a recipe, or a folder of pictures with a detector."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_config, add_overrides

EXAMPLES = """examples:
  adapter-mu evaluate runs/shapes-demo/arms/unlearned
  adapter-mu evaluate model.safetensors --recipe sd14/esd-u-1 --precision 5 --out runs/their-model
  adapter-mu evaluate shapes-sd evaluate.quality=[clip_score,fid,kid,lpips]
  adapter-mu evaluate my-pictures/ --detector nudenet --concept nudity --out scores
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is scored, what is looked for, and the folder for the results."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument(
        "model",
        help="a run's folder, an arm's folder, a diffusers folder, a .safetensors file, a hub id, or a folder of "
        "pictures",
    )
    add_config(parser)
    parser.add_argument("--recipe", help="says what to look for and how; a run or an arm brings its own")
    parser.add_argument("--detector", help="another detector: a name, or '{name: ..., option: ...}'")
    parser.add_argument("--concept", help="what to look for in a folder of pictures")
    parser.add_argument("--precision", type=float, help="as many images as give every score +- this many points")
    parser.add_argument("--name", help="what to call the model in tables (default: the arm's name, else model)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: the run, else runs/evaluate-NAME)")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from adapter_mu.run import evaluate_victims, judge_pictures
    from adapter_mu.stages import find_victims, holds_pictures, pictures_to_judge, scoring_overrides

    if holds_pictures(Path(args.model)):
        choice, concept = pictures_to_judge(args.detector, args.concept, args.recipe, args.overrides)
        print(judge_pictures(Path(args.model), choice, concept, args.out))
        return
    overrides = [*args.overrides, *scoring_overrides(args.detector, args.concept, args.precision)]
    victims = find_victims(args.model, args.recipe, overrides, args.name, args.out, "evaluate")
    print(evaluate_victims(victims, args.config))
