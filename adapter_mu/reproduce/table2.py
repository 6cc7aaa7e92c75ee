"""Table 2: the quality of the models of Table 1 before any attack."""

from __future__ import annotations

from adapter_mu.reproduce.layout import Sheet
from adapter_mu.reproduce.paper import META, QUALITY_OF_BASE, ROWS, TABLE2, UNLEARNED
from adapter_mu.reproduce.quality import conventions, quality_cell
from adapter_mu.reproduce.runs import World

METRICS = ("fid", "clip_score")


def table2(world: World) -> Sheet:
    """FID and CLIP score (as the world measures them) of the base and of both arms of the six rows."""
    recipes = {label: world.recipe(name) for label, name in ROWS.items()}
    folders = {label: world.run(recipe, ROWS[label]) for label, recipe in recipes.items()}
    first = next(iter(folders.values()))
    rows = {}
    for arm in (UNLEARNED, META):
        for i, metric in enumerate(METRICS):
            original = quality_cell(first, "base", metric, QUALITY_OF_BASE[i])
            cells = [quality_cell(folder, arm, metric, TABLE2[arm][label][i]) for label, folder in folders.items()]
            rows[f"{arm} {metric}"] = [original, *cells]
    return Sheet(f"Table 2 on {world.name}: quality before attacks", ["base", *ROWS], rows, conventions(first))
