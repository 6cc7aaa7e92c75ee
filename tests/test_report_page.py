"""The page stands alone, shows all there is, escapes what is hostile, and hides what nobody should meet unasked."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapter_mu.report.bundle import load_run
from adapter_mu.report.page import render
from tests.report_cases import STEPS, row, suite_rows, synthetic_rows, write_results, write_run, write_suite

VOID = ("meta", "img", "br", "input", "source", "link")
ATTACKS = ("full", "lora_r16", "clean")


class Page(HTMLParser):
    """A page's tags, what it would load, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.inside.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and css in (a.get("class") or "").split(" ") + [""]]


def page_of(run: Path) -> str:
    return render(load_run(run))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("suite")
    return page_of(write_suite(folder, attacks=ATTACKS, guidances=(1.5, 7.5)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, synthetic_rows(), title="Forgetting the ring", caption="A synthetic run & a test.")


def test_the_page_stands_alone_and_is_well_formed(suite: str) -> None:
    page = Page(suite)
    assert all(source.startswith(("data:image/webp;base64,", "#")) for source in page.sources)
    assert "http:" not in suite and "https:" not in suite and "url(" not in suite and "@import" not in suite
    assert not page.all("link") and not [a for a in page.all("script") if "src" in a]
    assert not [a for _, a in page.tags if "style" in a or any(name.startswith("on") for name in a)]


def test_the_policy_allows_this_style_and_this_script_only(suite: str) -> None:
    page = Page(suite)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy and "*" not in policy
    style, script = "".join(page.inside["style"]), page.inside["script"][-1]
    for text in (style, script):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_the_page_has_every_part(suite: str) -> None:
    page = Page(suite)
    ids = [a.get("id") for a in page.all("section")]
    parts = [
        "worst",
        "curves",
        "pictures",
        "scores",
        "prompts",
        "differences",
        "quality",
        "training",
        "method",
        "repeat",
    ]
    assert ids == parts
    assert [a["href"] for a in page.all("a")] == ["#worst", *(f"#{part}" for part in parts)]
    for words in (
        "Worst case over 3 attacks and guidance 1.5 and 7.5",
        "95&nbsp;% interval",
        "unlearndiffatk",
        "threshold 0.75",
        "clip score",
        "cosine",
        "2 seeds of each attack",
        "adapter-mu run sd14/suite --out &#39;runs/the suite&#39;",
        "9b1deb4d3b7d",
        "recipe_hash",
        "diffusers",
        "FT: lora_r16",
    ):
        assert words in suite, words


def test_every_attack_has_a_curve_that_needs_no_colour(suite: str) -> None:
    figures = re.findall(r'<figure class="chart"><figcaption>(\w+)</figcaption>(<svg.*?</svg>)', suite, re.S)
    assert [name for name, _ in figures] == list(ATTACKS)
    for _, svg in figures:
        bold = re.findall(r'<polyline class="bold s(\d)"( stroke-dasharray="[^"]+")?', svg)
        assert {series: bool(dash) for series, dash in bold} == {"0": False, "1": True}
        assert '<circle class="dot s0"' in svg and '<path class="dot s1"' in svg
        assert svg.count('<polygon class="band') == 2 and 'aria-label="Relearning curve of' in svg


def test_the_worst_case_names_attack_scale_and_interval(run: Path) -> None:
    cases = re.findall(r'<article class="case">(.*?)</article>', page_of(run), re.S)
    text = [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", case)).split()) for case in cases]
    assert len(text) == 2 and text[1].startswith("meta-unlearned 80.0 %")
    assert "73.9 to 85.0" in text[1]
    assert "after 300 steps of malicious finetuning, at guidance 1.5" in text[1]


def test_landmarks_headings_and_names_for_those_who_listen(suite: str) -> None:
    page = Page(suite)
    assert len(page.all("main")) == len(page.all("header")) == len(page.all("footer")) == len(page.all("h1")) == 1
    assert page.all("nav")[0]["aria-label"] == "Sections"
    assert all(a.get("aria-labelledby") for a in page.all("section"))
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in page.all("div", "wide"))
    slider = next(a for a in page.all("input") if a.get("type") == "range")
    assert slider["id"] == "step" and slider["aria-valuetext"] == "after 300 steps of the attack “full”"
    assert any(a.get("for") == "step" for a in page.all("label"))


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="pictures-data">(.*?)</script>', text, re.S)
    assert found
    content: dict[str, Any] = json.loads(found.group(1))
    return content


def test_the_slider_can_reach_every_strip(suite: str) -> None:
    data = data_of(suite)
    assert data["arms"] == ["base", "unlearned", "meta-unlearned"]
    assert [attack["steps"] for attack in data["attacks"]] == [[0, *STEPS]] * 3
    assert data["attacks"][1]["places"][:2] == ["before any attack", "after 50 steps of the attack “lora_r16”"]
    assert len(data["sheets"]) == 2 * (3 + 2 * 3 * 4) and len(data["cells"]) == 3 * 3 * 2 * 5
    assert all(len(sheet["c"]) == len(sheet["b"]) == 10 for sheet in data["sheets"])
    base = {data["cells"][f"0.{attack}.0.{step}"] for attack in range(3) for step in range(5)}
    assert len(base) == 1, "the base is never attacked and stays as it is"


def test_prompts_stand_beside_pictures(suite: str) -> None:
    prompts = re.findall(r'<p class="prompt">(.*?)</p>', suite)
    assert len(prompts) == 20 and {"a photo of a ring", "two rings on a table"} <= set(prompts[:10])
    assert set(prompts[10:]) == {"a photo of a star", "a drawing of a square on a gray background"}


def veils(text: str) -> list[bool]:
    return ["veiled" in (a["class"] or "").split() for a in Page(text).all("figure", "tile")]


def test_what_a_sensitive_detector_found_is_hidden_until_it_is_pressed(suite: str) -> None:
    data = data_of(suite)
    rows = {(r.arm, r.attack, r.step, r.guidance, r.seed): r for r in suite_rows(ATTACKS, (1.5, 7.5))}
    found = rows["meta-unlearned", "full", 100, 1.5, 0].found[:10]
    assert data["sheets"][data["cells"]["2.0.0.2"]]["hc"] == found and "0" in found and "1" in found
    assert all(sheet["hb"] == "1" * 10 for sheet in data["sheets"]), "benign pictures were not asked about"
    shown = veils(suite)
    assert shown[:3] == [True] * 3 and any(shown) and not all(shown)
    assert suite.count('class="peek"') == len(shown) and 'id="unveil"' in suite
    assert ".veiled img { filter: blur(" in suite


@pytest.mark.parametrize(
    ("detector", "meta", "hidden"),
    [
        ("shapes", {}, False),
        ("nudenet", {}, True),
        ("safety-checker", {}, True),
        ("laion", {}, True),
        ("Q16", {}, True),
        ("shapes", {"sensitive": True}, True),
        ("nudenet", {"sensitive": False}, False),
    ],
)
def test_who_is_sensitive(detector: str, meta: dict[str, Any], hidden: bool, tmp_path: Path) -> None:
    text = page_of(write_suite(tmp_path, attacks=("full",), guidances=(1.5,), detector=detector, **meta))
    assert any(veils(text)) is hidden and ("Show all blurred" in text) is hidden


def test_without_a_record_of_finds_everything_sensitive_is_hidden(run: Path) -> None:
    content = json.loads((run / "results.json").read_text())
    content["meta"]["detector"] = "nudenet"
    (run / "results.json").write_text(json.dumps(content))
    assert all(veils(page_of(run)))


HOSTILE = "</script><img src=x onerror=alert(1)>"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    arms = ("base", f"a{HOSTILE}", "../../up")
    rows = [row(arm, "none", 4.0, 0, 50) for arm in arms]
    rows += [row(arm, f"x{HOSTILE}", 4.0, step, 50) for arm in arms[1:] for step in STEPS]
    item = {"arm": f"a{HOSTILE}", "metric": HOSTILE, "value": 1, "convention": HOSTILE}
    meta = dict.fromkeys(("concept", "title", "caption", "command"), HOSTILE) | {"detector": {HOSTILE: HOSTILE}}
    write_results(tmp_path, rows, meta, quality=[item])
    (tmp_path / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (tmp_path / "pictures").mkdir()
    for name in ("base_none_0_4.png", "stolen.png"):
        Image.new("RGB", (68, 68), "red").save(tmp_path / "pictures" / name)
    page = Page(page_of(tmp_path))
    assert not [a for _, a in page.tags if "onerror" in a] and "x" not in page.sources
    assert len(page.all("script")) == 2


def test_the_page_escapes_the_recipe_and_shows_versions(run: Path) -> None:
    text = page_of(run)
    for words in (
        "Forgetting the ring",
        "A synthetic run &amp; a test.",
        "&lt;b&gt;not bold&lt;/b&gt;",
        "machine.cores",
    ):
        assert words in text
    assert "adapter-mu run recipe.yaml --out again" in text


def test_the_page_of_a_bare_run(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path, [row("base", "none", 4.0, 0, 99)], extras=False))
    assert "compares nothing" in text and "does not say how it was made" in text
    assert not {"curves", "pictures", "prompts", "training"} & {a.get("id") for a in Page(text).all("section")}


def test_large_pictures_do_not_make_a_large_page(run: Path) -> None:
    small = len(page_of(run))
    Image.effect_noise((5140, 1028), 90).save(run / "pictures" / "base_none_0_4.png")
    assert len(page_of(run)) - small < 1_000_000


def test_a_run_without_attacks_has_no_slider_to_pull(tmp_path: Path) -> None:
    rows = [row(arm, "none", 4.0, 0, score) for arm, score in (("base", 99), ("unlearned", 5), ("meta-unlearned", 2))]
    text = page_of(write_run(tmp_path, rows))
    assert "No finetuning attack was made" in text and 'class="slide off"' in text
