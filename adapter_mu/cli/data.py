"""Build picture sets from a recipe, a concept or prompt lists, or name the shipped prompt lists."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_mu.cli.arguments import add_config, add_dtype, add_overrides, positive

if TYPE_CHECKING:
    from adapter_mu.data.painter import Drawing, Painter
    from adapter_mu.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do: build or lists."""
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    build = whats.add_parser("build", help="draw or import picture sets", description=_build.__doc__)
    build.add_argument("recipe", nargs="?", help="build the sets of this recipe")
    build.add_argument("--concept", help="or sets from templates for this concept")
    build.add_argument("--kind", choices=("object", "style"), default="object", help="what the concept is")
    build.add_argument("--related", default="", metavar="A,B", help="benign concepts beside it")
    build.add_argument("--unrelated", default="", metavar="A,B", help="benign concepts (default: everyday things)")
    build.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="a set of your own: a folder of pictures, a .csv, a text file or a shipped list; may be repeated",
    )
    build.add_argument("--caption", default="", help="of pictures in folders that have no captions")
    build.add_argument("--only", action="append", metavar="NAME", help="only this set; may be repeated")
    build.add_argument("--out", type=Path, required=True, help="the folder for all sets")
    build.add_argument("--images", type=positive, help="pictures a set (default: 30, a recipe's own, a folder's all)")
    build.add_argument("--seed", type=int, default=0)
    _add_painter(build)
    add_overrides(build)
    whats.add_parser("lists", help="name the shipped prompt lists", description="Name the shipped prompt lists.")


def _add_painter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="any diffusers text-to-image model: built-in, folder, file or hub id")
    add_config(parser)
    parser.add_argument("--revision", help="commit, tag or branch of a hub id")
    parser.add_argument("--variant", help="weight variant, such as fp16")
    parser.add_argument("--steps", type=positive, help="sampling steps (default: the recipe's, else the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (the same)")
    parser.add_argument("--size", type=positive, help="pixels of a side (default: the model's; 512 for imported ones)")
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--batch-size", type=positive, default=4)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--offload", choices=("model", "sequential"), help="for models larger than the GPU (FLUX.1)")
    add_dtype(parser, "fp32", "precision of the weights; bf16 for FLUX.1")


def run(args: argparse.Namespace) -> None:
    """Do it."""
    if args.what == "build":
        _build(args)
    else:
        from adapter_mu.data.prompts import shipped_prompts

        print("\n".join(shipped_prompts()))


def _build(args: argparse.Namespace) -> None:
    """Draw or import picture sets, each a folder with metadata.jsonl and a contact sheet; stopped builds continue."""
    from adapter_mu.data.collect import as_snippet, build_sets, chosen_sets
    from adapter_mu.recipe import load_recipe
    from adapter_mu.stages import say

    recipe = load_recipe(args.recipe, args.overrides) if args.recipe else None
    specs = chosen_sets(
        recipe,
        args.concept,
        args.set,
        kind=args.kind,
        related=_words(args.related),
        unrelated=_words(args.unrelated),
        caption=args.caption,
        images=args.images,
        seed=args.seed,
        only=args.only,
    )
    built = build_sets(specs, args.out, *_painting(args, recipe), batch_size=args.batch_size, say=say)
    for part in built:
        print(f"{part.name}: {part.images} pictures in {part.folder}, contact sheet {part.sheet}")
    print(f"\nIn a recipe:\n{as_snippet(built)}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _painting(args: argparse.Namespace, recipe: Recipe | None) -> tuple[Callable[[], Painter], Drawing]:
    """What loads the painter, and how it draws: what the command says, else the recipe."""
    from adapter_mu.data.painter import Drawing, load_painter
    from adapter_mu.errors import RecipeError
    from adapter_mu.stages import DTYPES, pick_device

    base, sampler = (recipe.base, recipe.data.sampler) if recipe else (None, None)

    def load() -> Painter:
        source = args.model or (base and base.model)
        if not source:
            raise RecipeError("Something must draw the pictures; name a --model or a recipe.")
        own = {"revision": args.revision, "variant": args.variant, "config": args.config}
        if base and not args.model:
            own = {"revision": base.revision, "variant": base.variant, "config": base.config}
        return load_painter(
            source, dtype=DTYPES[args.dtype], device=pick_device(args.device), offload=args.offload, **own
        )

    steps = args.steps if args.steps or sampler is None else sampler.steps
    guidance = args.guidance if args.guidance is not None or sampler is None else sampler.guidance
    return load, Drawing(steps, guidance, args.size, args.negative)
