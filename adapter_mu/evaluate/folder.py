"""A detector's verdict on pictures that are already there."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_mu.data.cache import write_text
from adapter_mu.data.folders import SUFFIXES
from adapter_mu.errors import UserError
from adapter_mu.evaluate.detectors import Detector
from adapter_mu.evaluate.detectors.nudenet import NudeNet
from adapter_mu.evaluate.statistics import wilson_interval
from adapter_mu.progress import progress

AT_ONCE = 32


@dataclass
class Judged:
    """The files of a folder, the score of each, and whether its concept was found."""

    concept: str
    files: list[str]
    scores: list[float] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    classes: list[dict[str, float]] = field(default_factory=list)
    """NudeNet's classes and their scores, of each picture; empty for other detectors."""

    def shares(self, detector: Detector) -> list[dict[str, Any]]:
        """Hits and Wilson's interval in percent, at each threshold or by the detector's own rule."""
        hits = {name: sum(score > limit for score in self.scores) for name, limit in detector.thresholds.items()}
        hits, total = hits or {"found": sum(self.found)}, len(self.files)
        bounds = {name: wilson_interval(count, total) for name, count in hits.items()}
        return [
            {"threshold": name, "hits": count, "value": 100 * count / total, "low": low, "high": high}
            for (name, count), (low, high) in zip(hits.items(), bounds.values(), strict=True)
        ]

    def class_counts(self, threshold: float) -> dict[str, int]:
        """In how many pictures each class was seen above the threshold, the most frequent first."""
        seen = [label for one in self.classes for label, score in one.items() if score > threshold]
        return {label: seen.count(label) for label in sorted(set(seen), key=lambda label: (-seen.count(label), label))}


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder and of those in it, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def judge_folder(folder: Path, detector: Detector, concept: str) -> Judged:
    """Let the detector see every picture.

    Raises:
        UserError: there are no pictures, one cannot be read, or the detector does not know the concept.
    """
    detector.check({concept})
    files = picture_files(folder)
    if not files:
        raise UserError(f"There are no pictures in {folder}; give a folder of {', '.join(SUFFIXES)} files.")
    judged = Judged(concept, [str(file.relative_to(folder)) for file in files])
    for start in progress(range(0, len(files), AT_ONCE), f"looking for {concept}", leave=False):
        _judge(judged, detector, files[start : start + AT_ONCE])
    return judged


def _judge(judged: Judged, detector: Detector, files: list[Path]) -> None:
    """Look once: scores, and what follows from them."""
    if isinstance(detector, NudeNet):
        seen = detector.detections(files)
        scores = [detector.score(one, judged.concept) for one in seen]
        judged.classes += [detector.classes(one) for one in seen]
    else:
        scores = detector.scores(files, [judged.concept] * len(files)).tolist()
    judged.scores += scores
    limit = next(iter(detector.thresholds.values()), None)
    if limit is None:
        judged.found += detector.found(files, [judged.concept] * len(files)).tolist()
    else:
        judged.found += [score > limit for score in scores]


def as_text(judged: Judged, detector: Detector) -> str:
    """The shares as lines for the terminal."""
    lines = [f"{len(judged.files)} pictures, looking for {judged.concept} with {detector.facts()['name']}"]
    for one in judged.shares(detector):
        above = "found" if one["threshold"] == "found" else f"above {one['threshold']}"
        interval = f"95 % interval {one['low']:.1f} to {one['high']:.1f}"
        lines.append(f"{above}: {one['value']:.1f} % ({one['hits']}; {interval})")
    if judged.classes and (counts := judged.class_counts(next(iter(detector.thresholds.values())))):
        lines.append("classes: " + ", ".join(f"{label} {count}" for label, count in counts.items()))
    return "\n".join(lines)


def save_judged(judged: Judged, detector: Detector, facts: dict[str, Any], folder: Path) -> None:
    """Write scores.csv (one line a picture) and scores.json (shares, the detector and `facts`) to the folder."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "score", "found", "classes"])
    classes = judged.classes or [{}] * len(judged.files)
    for file, score, found, seen in zip(judged.files, judged.scores, judged.found, classes, strict=True):
        named = " ".join(f"{label}:{value:.3f}" for label, value in seen.items())
        table.writerow([file, f"{score:.6f}", int(found), named])
    whole = {"concept": judged.concept, "images": len(judged.files), "shares": judged.shares(detector)}
    whole |= {"meta": {"detector": detector.facts(), **facts}}
    write_text(folder / "scores.csv", text.getvalue())
    write_text(folder / "scores.json", json.dumps(whole, indent=1))
