"""Attack merged models and score them along the way: a run, one of its arms, or any SD 1.x or SDXL."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_config, add_overrides

EXAMPLES = """examples:
  adapter-mu attack runs/shapes-demo --suite standard
  adapter-mu attack runs/shapes-demo/arms/unlearned --attack lora_r16 --attack full --steps 0,50,100,200,300
  adapter-mu attack model.safetensors --recipe shapes/demo --suite standard --out runs/their-model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is attacked, how, and the folder for the results."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument(
        "model", help="a run's folder, an arm's folder, a diffusers folder, a .safetensors file, or a hub id"
    )
    add_config(parser)
    parser.add_argument("--recipe", help="says what to look for and how; a run or an arm brings its own")
    parser.add_argument("--attack", action="append", default=[], help="an attack of the recipe, or an attack file")
    parser.add_argument("--suite", help="a list of attacks: standard, or a YAML file")
    parser.add_argument("--steps", type=whole_numbers, default=[], help="points of the curves, such as 0,50,100")
    parser.add_argument("--seeds", type=whole_numbers, default=[], help="seeds of the attack, such as 0,1,2")
    parser.add_argument("--lr", type=rates, default=[], help="learning rates to sweep, such as 1e-5,1e-4")
    parser.add_argument("--name", help="what to call the model in tables (default: the arm's name, else model)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: the run, else runs/attack-NAME)")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from adapter_mu.recipe import Asked
    from adapter_mu.run import attack_victims
    from adapter_mu.stages import find_victims

    victims = find_victims(args.model, args.recipe, args.overrides, args.name, args.out)
    asked = Asked(args.attack, args.suite, args.steps, args.seeds, args.lr)
    print(attack_victims(victims, args.config, asked))


def whole_numbers(text: str) -> list[int]:
    """Whole numbers of at least 0, separated by commas."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' must be whole numbers of at least 0, such as 0,50,100")
    return numbers


def rates(text: str) -> list[float]:
    """Positive numbers, separated by commas."""
    found = [float(part) for part in text.split(",")]
    if not min(found) > 0:
        raise argparse.ArgumentTypeError(f"'{text}' must be positive numbers, such as 1e-5,1e-4")
    return found
