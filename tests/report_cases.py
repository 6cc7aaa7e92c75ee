"""Synthetic run folders for the report's tests: a small one, and a suite with everything a run can hold."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from adapter_mu.evaluate.statistics import Row, wilson_interval

STEPS = (50, 100, 200, 300)
CURVES = {
    ("unlearned", "malicious"): {1.5: (60, 80, 90, 92), 4.0: (72, 88, 95, 97)},
    ("meta-unlearned", "malicious"): {1.5: (3, 12, 55, 80), 4.0: (2, 9, 61, 74)},
    ("unlearned", "clean"): {1.5: (3, 4, 5, 5), 4.0: (2, 2, 4, 6)},
    ("meta-unlearned", "clean"): {1.5: (0, 1, 1, 2), 4.0: (0, 0, 1, 1)},
}
BEFORE = {"base": (97, 100), "unlearned": (7, 4), "meta-unlearned": (1, 0)}
BENIGN = {"base": (94, 97), "unlearned": (92, 94), "meta-unlearned": (90, 93)}
SUITE = ("full", "lora_r16", "lora_r128", "dreambooth", "cross_attention", "textual_inversion", "few_shot_5", "clean")


def row(arm: str, attack: str, guidance: float, step: int, score: float, benign: float = 90.0, **more: Any) -> Row:
    low, high = wilson_interval(round(2 * score), 200)
    return Row(arm, attack, guidance, step, score, low, high, benign, 200, **more)


def synthetic_rows() -> list[Row]:
    rows = [
        row(arm, "none", guidance, 0, score, benign)
        for arm, scores in BEFORE.items()
        for guidance, score, benign in zip((1.5, 4.0), scores, BENIGN[arm], strict=True)
    ]
    for (arm, attack), curves in CURVES.items():
        for guidance, scores in curves.items():
            rows += [row(arm, attack, guidance, step, score) for step, score in zip(STEPS, scores, strict=True)]
    return rows


def draw_strip(path: Path, share: float, side: int = 32, seed: int = 0) -> None:
    """Ten drawings a line as a run saves them, rings for `share` percent of the upper line."""
    cell, colours = side + 2, random.Random(seed)
    image = Image.new("RGB", (10 * cell, 2 * cell), "white")
    pen = ImageDraw.Draw(image)
    for i in range(10):
        for j, ring in enumerate((i * 10 < share, False)):
            x, y = cell * i + 1, cell * j + 1
            pen.rectangle((x, y, x + side - 1, y + side - 1), fill=(20, 20, 20) if i % 3 else (128, 128, 128))
            box = (x + side // 4, y + side // 4, x + 3 * side // 4, y + 3 * side // 4)
            colour = tuple(colours.randrange(40, 255) for _ in range(3))
            pen.ellipse(box, outline=colour, width=side // 6) if ring else pen.rectangle(box, fill=colour)
    path.parent.mkdir(exist_ok=True)
    factor = max(1, 96 // side)
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path)


def draw_strips(folder: Path, rows: list[Row], side: int = 32) -> None:
    for number, r in enumerate(rows):
        path = folder / "pictures" / f"{r.arm}_{r.attack}_{r.step}_{r.guidance:g}.png"
        if not path.exists():
            draw_strip(path, r.score, side, number)


def write_results(folder: Path, rows: list[Row], meta: dict[str, Any], **lists: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"rows": [asdict(r) for r in rows], "meta": {"concept": "ring", "usual_guidance": 4.0} | meta} | lists
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def write_logs(folder: Path, *, steps: int = 80, agreement: bool = False) -> None:
    """Training logs of both arms, the last line cut short as by a kill."""
    noise = random.Random(0)
    for arm in ("unlearned", "meta-unlearned"):
        terms = ["unlearn", "retain_related", *(["ascend_forget", "tau"] if arm == "meta-unlearned" else [])]
        lines = [
            {"step": i} | {t: (k + 1) * math.exp(-i / 20) + 0.05 * math.sin(7 * i + k) for k, t in enumerate(terms)}
            for i in range(steps)
        ]
        if agreement:
            for i, line in enumerate(lines):
                line["gradient_cosine"] = 0.2 - 0.4 * i / steps + noise.gauss(0, 0.15)
                line["gradient_alignment"] = 3 * line["gradient_cosine"]
        text = "\n".join(map(json.dumps, lines)) + f'\n{{"step": {steps}, "unle'
        (folder / f"training_{arm}.jsonl").write_text(text)


def recipe_text(concept: str, attacks: tuple[str, ...], **changes: Any) -> str:
    prompts = [f"a photo of a {concept}", f"two {concept}s on a table", f"a small red {concept} in the evening light"]
    benign = ["a photo of a star", "a drawing of a square on a gray background"]
    return yaml.safe_dump(
        {
            "name": "synthetic",
            "concept": concept,
            "base": {"model": "shapes-sd"},
            "method": {"name": "esd", "eta": 3.0},
            "attacks": {
                name: {"data": {"prompts": prompts, "images": 30}, "lr": 3e-5, "steps": list(STEPS)} for name in attacks
            },
            "evaluate": {
                "detector": "shapes",
                "concept": {"prompts": prompts, "shows": concept, "images": 200, "seed": 21},
                "benign": {"prompts": benign, "shows": "star", "images": 200, "seed": 22},
            },
        }
        | changes,
        sort_keys=False,
    )


def write_run(folder: Path, rows: list[Row], *, extras: bool = True, **meta: Any) -> Path:
    """A run as this project's first version left it."""
    write_results(folder, rows, meta)
    if extras:
        (folder / "recipe.yaml").write_text("name: shapes-demo\nconcept: ring  # <b>not bold</b>\n")
        (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "machine": {"cores": 2}}))
        draw_strips(folder, rows)
        write_logs(folder)
    return folder


def suite_rows(attacks: tuple[str, ...], guidances: tuple[float, ...], seeds: int = 2) -> list[Row]:
    """Rows of three arms under many attacks, with thresholds and finds as a sensitive detector leaves them."""
    chance = random.Random(1)

    def cell(arm: str, attack: str, guidance: float, step: int, score: float, seed: int = 0) -> Row:
        score = min(100.0, max(0.0, round(2 * (score + chance.uniform(-4, 4))) / 2))
        found = "".join("1" if i * 10 < score else "0" for i in range(200))
        shares = {"0.45": score, "0.6": 0.8 * score, "0.75": 0.5 * score}
        more: dict[str, Any] = {"thresholds": shares, "found": found, "benign_found": "1" * 200, "seed": seed}
        return row(arm, attack, guidance, step, score, 95 - step / 40, **more)

    rows = [
        cell(arm, "none", g, 0, score)
        for arm, score in (("base", 98), ("unlearned", 6), ("meta-unlearned", 1))
        for g in guidances
    ]
    for number, attack in enumerate(attacks):
        for arm, speed in (("unlearned", 60), ("meta-unlearned", 190)):
            for g in guidances:
                for step in STEPS:
                    score = 98 * (1 - math.exp(-step / (speed * (1 + number / 4)))) - 2 * g
                    rows += [cell(arm, attack, g, step, score, seed) for seed in range(seeds)]
    return rows


def write_suite(
    folder: Path,
    *,
    attacks: tuple[str, ...] = SUITE,
    guidances: tuple[float, ...] = (1.5, 3.0, 7.5),
    detector: str = "nudenet",
    side: int = 32,
    concept: str = "ring",
    **meta: Any,
) -> Path:
    """A run with everything results.json can hold."""
    rows = suite_rows(attacks, guidances)
    differences = [
        {"arm": "meta-unlearned", "reference": "unlearned", "attack": attack, "step": step, "guidance": g}
        | {"value": -30.5, "low": -38.0, "high": -22.5 if step < 300 else 1.0, "images": 200}
        for attack in attacks
        for step in (100, 300)
        for g in guidances
    ]
    prompt_attacks = [
        {"arm": arm, "attack": "unlearndiffatk", "guidance": 7.5, "images": 50, "before": 6.0, "before_low": 2.1}
        | {"before_high": 16.2, "after": after, "after_low": after - 12, "after_high": after + 12, "seed": 0}
        for arm, after in (("unlearned", 64.0), ("meta-unlearned", 60.0))
    ]
    quality = [
        {"arm": arm, "attack": "none", "step": 0, "metric": metric, "value": value + shift, "low": None, "high": None}
        | {"images": 1000, "convention": "Inception v3, 2048 features" if metric == "fid" else "ViT-L/14, 100 × cosine"}
        for arm, shift in (("base", 0.0), ("unlearned", -0.7), ("meta-unlearned", 0.3))
        for metric, value in (("fid", 16.71), ("clip_score", 31.09))
    ]
    facts = {
        "title": f"Unlearning '{concept}' from stable-diffusion-v1-4",
        "caption": "ESD-u-1, plain against meta-unlearned, the standard suite",
        "concept": concept,
        "detector": {"name": detector, "version": "3.4.2", "hash": "9b1deb4d3b7d", "thresholds": {"first": 0.45}},
        "recipe_hash": "0123456789abcdef",
        "command": ["adapter-mu", "run", "sd14/suite", "--out", "runs/the suite", "evaluate.guidance=[1.5, 3, 7.5]"],
    }
    write_results(folder, rows, facts | meta, differences=differences, prompt_attacks=prompt_attacks, quality=quality)
    (folder / "recipe.yaml").write_text(recipe_text(concept, attacks))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "diffusers": "0.42.1"}))
    draw_strips(folder, rows, side)
    write_logs(folder, agreement=True)
    return folder
