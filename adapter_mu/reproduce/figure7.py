"""Figure 7: pictures of related concepts after each of the first twelve steps of a malicious finetune."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from adapter_mu.evaluate.pictures import SHOWN
from adapter_mu.recipe import Recipe
from adapter_mu.reproduce.figures import save_figure
from adapter_mu.reproduce.layout import Cell, Sheet
from adapter_mu.reproduce.paper import META, UNLEARNED
from adapter_mu.reproduce.runs import World, changed, lowest_benign, worst_row

ATTACK, STEPS = "hrm-s", tuple(range(1, 13))
CELLS = [("none", 0), *((ATTACK, step) for step in STEPS)]
EXAMPLES, IMAGES = 3, 40


def figure7(world: World) -> str:
    """Attack both arms of the UCE row for 1 to 12 steps and show what prompts for related concepts still give.

    Returns:
        How many pictures are right after every step, and where the figure lies.
    """
    recipe = _recipe(world.recipe("uce"))
    folder = world.run(recipe, "uce_first-steps")
    assert recipe.evaluate is not None
    path = world.folder / "figure7.png"
    _plot(folder, recipe.evaluate.usual_guidance, path)
    rows = {
        f"{arm} {what}": [_cell(folder, arm, *cell, what) for cell in CELLS]
        for arm in (UNLEARNED, META)
        for what in ("concept", "related")
    }
    sheet = Sheet(
        f"Figure 7 on {world.name}: pictures that show what was asked for, percent, steps of {ATTACK}",
        [str(step) for _, step in CELLS],
        rows,
        ["Concept: at the guidance scale where it is highest. Related: where it is lowest."],
    )
    sheet.save(world.folder, "figure7")
    return f"{sheet.text()}\n\n{path}"


def _recipe(recipe: Recipe) -> Recipe:
    """The row attacked once, scored after each step on the concept and on the related concepts alone."""
    assert recipe.evaluate is not None
    related = recipe.data.related.model_dump(mode="json")
    changes = {
        "evaluate": {
            "concept": {"images": IMAGES},
            "benign": related | {"images": IMAGES, "seed": recipe.evaluate.benign.seed},
        }
    }
    attack = recipe.attacks[ATTACK].model_copy(update={"steps": list(STEPS)})
    return changed(recipe, changes).model_copy(update={"attacks": {ATTACK: attack}})


def _cell(folder: Path, arm: str, attack: str, step: int, what: str) -> Cell:
    if what == "concept":
        row = worst_row(folder, arm, attack, step)
        return Cell() if row is None else Cell(row.score, row.low, row.high)
    return Cell(lowest_benign(folder, arm, attack, step))


def _plot(folder: Path, guidance: float, path: Path) -> None:
    """One column a step; each arm has `EXAMPLES` lines of the same prompts and noise."""
    lines = [(arm, i) for arm in (UNLEARNED, META) for i in range(EXAMPLES)]
    figure = Figure(figsize=(len(CELLS) * 0.8 + 1.4, len(lines) * 0.85 + 0.4), layout="constrained")
    axes = figure.subplots(len(lines), len(CELLS), squeeze=False)
    for (arm, example), row in zip(lines, axes, strict=True):
        for (attack, step), axis in zip(CELLS, row, strict=True):
            strip = folder / "pictures" / f"{arm}_{attack}_{step}_{guidance:g}.png"
            axis.imshow(_related_tile(strip, example), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if (arm, example) == lines[0]:
                axis.set_title(str(step) if step else "before", fontsize=8)
        if example == 0:
            row[0].set_ylabel(arm, fontsize=8)
    save_figure(figure, path)


def _related_tile(strip: Path, index: int) -> np.ndarray:
    """A picture of the strip's second line, where the benign prompts' pictures are."""
    with Image.open(strip) as image:
        side = image.width // SHOWN
        return np.asarray(image.crop((index * side, side, (index + 1) * side, 2 * side)))
