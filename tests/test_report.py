"""The report from a synthetic run folder: worst cells, honest sentences, a page that stands alone."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from adapter_mu.errors import UserError
from adapter_mu.evaluate.statistics import Row, wilson_interval
from adapter_mu.report import headline_table, load_results, load_rows, render_text
from adapter_mu.report.bars import sentences, verdicts
from adapter_mu.report.page import build_report

STEPS = (50, 100, 200, 300)
CURVES = {
    ("unlearned", "malicious"): {1.5: (60, 80, 90, 92), 4.0: (72, 88, 95, 97)},
    ("meta-unlearned", "malicious"): {1.5: (3, 12, 55, 80), 4.0: (2, 9, 61, 74)},
    ("unlearned", "clean"): {1.5: (3, 4, 5, 5), 4.0: (2, 2, 4, 6)},
    ("meta-unlearned", "clean"): {1.5: (0, 1, 1, 2), 4.0: (0, 0, 1, 1)},
}
BEFORE = {"base": (97, 100), "unlearned": (7, 4), "meta-unlearned": (1, 0)}
BENIGN = {"base": (94, 97), "unlearned": (92, 94), "meta-unlearned": (90, 93)}


def row(arm: str, attack: str, guidance: float, step: int, score: float, benign: float = 90.0) -> Row:
    low, high = wilson_interval(round(2 * score), 200)
    return Row(arm, attack, guidance, step, score, low, high, benign, 200)


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


def draw_strip(path: Path, share: float) -> None:
    """Ten drawings a row, rings for `share` percent of the upper row."""
    image = Image.new("RGB", (340, 68), "white")
    pen = ImageDraw.Draw(image)
    for i in range(10):
        for j, ring in enumerate((i * 10 < share, False)):
            x, y = 34 * i + 1, 34 * j + 1
            pen.rectangle((x, y, x + 31, y + 31), fill=(20, 20, 20) if i % 3 else (128, 128, 128))
            box = (x + 7, y + 7, x + 24, y + 24)
            pen.ellipse(box, outline=(40, 160, 240), width=5) if ring else pen.rectangle(box, fill=(230, 60, 50))
    path.parent.mkdir(exist_ok=True)
    image.save(path)


def write_run(folder: Path, rows: list[Row], *, extras: bool = True, **meta: Any) -> Path:
    content = {"rows": [vars(r) for r in rows], "meta": {"concept": "ring", "usual_guidance": 4.0} | meta}
    (folder / "results.json").write_text(json.dumps(content))
    if not extras:
        return folder
    (folder / "recipe.yaml").write_text("name: shapes-demo\nconcept: ring  # <b>not bold</b>\n")
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "machine": {"cores": 2}}))
    for r in rows:
        draw_strip(folder / "pictures" / f"{r.arm}_{r.attack}_{r.step}_{r.guidance:g}.png", r.score)
    for arm in ("unlearned", "meta-unlearned"):
        terms = ["unlearn", "retain_related", *(["ascend_forget", "tau"] if arm == "meta-unlearned" else [])]
        lines = [
            {"step": i} | {t: (k + 1) * math.exp(-i / 20) + 0.05 * math.sin(7 * i + k) for k, t in enumerate(terms)}
            for i in range(80)
        ]
        text = "\n".join(map(json.dumps, lines)) + '\n{"step": 80, "unle'
        (folder / f"training_{arm}.jsonl").write_text(text)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, synthetic_rows(), title="Forgetting the ring", caption="A synthetic run & a test.")


def test_rows_come_back_as_written(run: Path) -> None:
    assert load_rows(run) == synthetic_rows()
    results = load_results(run)
    assert (results.concept, results.usual_guidance, results.title) == ("ring", 4.0, "Forgetting the ring")


def test_every_cell_is_the_worse_scale_and_benign_the_lower() -> None:
    table = headline_table(synthetic_rows())
    meta = table.line("meta-unlearned")
    assert [line.arm for line in table.lines] == ["base", "unlearned", "meta-unlearned"]
    assert meta is not None
    assert [r.score for r in meta.curve("malicious")] == [3, 12, 61, 80]
    assert meta.benign == 90
    assert meta.area == pytest.approx(39.0)
    assert meta.ratio == pytest.approx(39.0 / 88.0)


def test_an_unfinished_attack_has_no_area() -> None:
    rows = [r for r in synthetic_rows() if (r.arm, r.attack, r.step) != ("unlearned", "malicious", 300)]
    table = headline_table(rows)
    assert [line.area for line in table.lines] == [None, None, pytest.approx(39.0)]
    assert all(line.ratio is None for line in table.lines)
    assert "not compared yet" in sentences(table, "ring")[0]


def test_other_arms_come_last_and_get_their_own_verdict() -> None:
    rows = [row("ascent", "none", 4.0, 0, 3), *synthetic_rows()]
    table = headline_table(rows)
    assert [line.arm for line in table.lines] == ["base", "unlearned", "meta-unlearned", "ascent"]
    assert [verdict.arm for verdict in verdicts(table)] == ["meta-unlearned", "ascent"]


def test_text_table_is_aligned() -> None:
    lines = render_text(headline_table(synthetic_rows()), "ring").splitlines()
    table = lines[lines.index("") + 1 :]
    bars = [[i for i, letter in enumerate(line) if letter == "|"] for line in table]
    assert len(table) == 5 and len(set(map(tuple, bars))) == 1
    assert re.split(r"[\s|]+", table[4]) == (
        "meta-unlearned 1.0 3.0 12.0 61.0 80.0 0.0 1.0 1.0 2.0 90.0 39.0 0.44".split()
    )
    assert all(len(line) <= 120 for line in lines)


def changed(arm: str, attack: str, step: int, score: float) -> list[Row]:
    """The synthetic rows with one cell at both guidance scales set to `score`."""
    rows = synthetic_rows()
    return [
        row(r.arm, r.attack, r.guidance, r.step, score, r.benign)
        if (r.arm, r.attack, r.step) == (arm, attack, step)
        else r
        for r in rows
    ]


@pytest.mark.parametrize(
    ("cell", "score", "missed"),
    [
        (("base", "none", 0), 94.5, "base shows"),
        (("unlearned", "malicious", 300), 69.5, "unlearned relearns"),
        (("unlearned", "none", 0), 10.5, "unlearned before"),
        (("meta-unlearned", "none", 0), 10.5, "at most 3 above"),
        (("meta-unlearned", "malicious", 50), 60, "area at most"),
        (("meta-unlearned", "clean", 100), 10, "under 10"),
    ],
)
def test_each_bar_is_missed_by_its_own_cell(cell: tuple[str, str, int], score: float, missed: str) -> None:
    table = headline_table(changed(*cell, score))
    failed = [bar.text for bar in verdicts(table)[0].bars if not bar.met]
    assert len(failed) == 1 and missed in failed[0]
    assert missed in sentences(table, "ring")[1]


def test_sentences_when_all_is_well() -> None:
    first, second = sentences(headline_table(synthetic_rows()), "ring")
    assert "80.0 % of the meta-unlearned" in first and "97.0 % of the unlearned" in first
    assert "0.44" in first and "clearly more" in first
    assert second == "All 8 bars that were measured are met."


@pytest.mark.parametrize(
    ("factor", "words"), [(1.0, "noise of sampling"), (0.8, "not much"), (1.2, "relearned faster")]
)
def test_sentences_do_not_flatter(factor: float, words: str) -> None:
    rows = [r for r in synthetic_rows() if (r.arm, r.attack) != ("meta-unlearned", "malicious")]
    plain = [r for r in rows if (r.arm, r.attack) == ("unlearned", "malicious")]
    rows = [row(r.arm, r.attack, r.guidance, r.step, 0.8 * r.score) if r in plain else r for r in rows]
    rows += [row("meta-unlearned", "malicious", r.guidance, r.step, 0.8 * factor * r.score) for r in plain]
    assert words in sentences(headline_table(rows), "ring")[0]


def test_a_run_with_nothing_to_compare_says_so() -> None:
    rows = [row("unlearned", "none", 4.0, 0, 3)]
    assert "compares nothing" in sentences(headline_table(rows), "ring")[0]


class Links(HTMLParser):
    """Collects what a page would load, and the tags that must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_stands_alone_and_is_well_formed(run: Path) -> None:
    path = build_report(run)
    page = path.read_text()
    links = Links()
    links.feed(page)
    assert path == run / "report.html"
    assert not links.open and "script" not in links.tags and "link" not in links.tags
    assert links.sources and all(source.startswith("data:image/png;base64,") for source in links.sources)
    assert "http" not in page and "url(" not in page


def test_page_shows_everything_the_run_has_and_escapes_it(run: Path) -> None:
    page = build_report(run).read_text()
    for text in (
        "Forgetting the ring",
        "A synthetic run &amp; a test.",
        "&lt;b&gt;not bold&lt;/b&gt;",
        "machine.cores",
    ):
        assert text in page
    strips = 2 * 2 * (1 + 2 * 5)
    assert page.count('class="strip"') == strips
    assert page.count("<picture>") == 2
    assert not list(run.glob(".report*"))


def test_page_of_a_bare_run(tmp_path: Path) -> None:
    page = build_report(write_run(tmp_path, [row("base", "none", 4.0, 0, 99)], extras=False)).read_text()
    assert "compares nothing" in page and "<picture>" not in page and "Recipe" not in page


def test_wide_pictures_are_reduced(run: Path) -> None:
    small = len(build_report(run).read_text())
    Image.effect_noise((9000, 900), 90).save(run / "pictures" / "base_none_0_4.png")
    grown = len(build_report(run).read_text()) - small
    assert grown < 2 * 1400 * 140 * 3 * 4 / 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no"),
        ("{", "not valid JSON"),
        ("[]", "must hold an object"),
        ('{"rows": []}', "no rows yet"),
        ('{"rows": [{"arm": "base"}]}', "cannot be read"),
        ('{"meta": {}}', "cannot be read"),
    ],
)
def test_unreadable_results_end_in_one_sentence(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=words):
        build_report(tmp_path)
