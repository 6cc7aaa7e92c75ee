"""The page in a real headless browser, at phone and desktop width, in light and dark; skipped where there is none."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapter_mu.report.bundle import join, load_run
from adapter_mu.report.page import render
from tests.report_cases import write_suite

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,900"),
)
WIDTHS = (360, 1280)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")

# The page is loaded in frames of the two widths and asked from outside, so that its own policy stays as it is.
HARNESS = """<!DOCTYPE html><body>{frames}<pre id="told"></pre><script>
const tell = (frame) => {{
  const page = frame.contentDocument, win = frame.contentWindow, told = {{}};
  const slider = page.getElementById("step"), tile = page.querySelector(".tile[data-arm='1']");
  const image = tile.querySelector("img"), style = (element) => win.getComputedStyle(element);
  const inWide = (element) => element.closest(".wide, .hidden, .skip, svg") && !element.matches(".wide, svg");
  told.script = page.documentElement.classList.contains("js");
  told.width = win.innerWidth;
  told.scroll = page.documentElement.scrollWidth;
  told.outside = [...page.body.querySelectorAll("*")]
    .filter((e) => !inWide(e) && e.getBoundingClientRect().right > win.innerWidth + 1)
    .map((e) => e.tagName + "." + e.className);
  told.cut = [...page.querySelectorAll("svg text")].filter((e) => {{
    const own = e.getBoundingClientRect(), all = e.closest("svg").getBoundingClientRect();
    return own.left < all.left - 3 || own.right > all.right + 3 || own.bottom > all.bottom + 3;
  }}).map((e) => e.textContent);
  told.page = style(page.body).backgroundColor;
  told.text = style(page.body).color;
  told.controls = style(page.querySelector(".controls")).display !== "none";
  told.copy = style(page.querySelector(".copy")).display !== "none";
  told.loaded = [...page.images].filter((i) => i.hasAttribute("src") && i.naturalWidth === 0).length;
  told.labels = [...page.querySelectorAll(".ticks li")].map((e) => e.textContent);

  told.blur = [style(image).filter];
  tile.querySelector(".peek").click();
  told.blur.push(style(image).filter);
  const at = (value) => {{
    slider.value = value;
    slider.dispatchEvent(new win.Event("input", {{bubbles: true}}));
    return [image.src, page.getElementById("state").textContent, slider.getAttribute("aria-valuetext"),
            tile.classList.contains("veiled"), tile.querySelector(".peek").checked,
            page.querySelector("[data-score='1']").textContent];
  }};
  told.steps = [0, 1, 2, 3, 4].map(at);
  page.getElementById("unveil").click();
  told.blur.push(style(image).filter);
  const attack = page.querySelector("select[name=attack]");
  attack.value = "1";
  attack.dispatchEvent(new win.Event("change", {{bubbles: true}}));
  told.other = [image.src, page.getElementById("state").textContent];
  const rows = page.querySelector(".scale");
  told.scales = [style(rows).display];
  page.getElementById("scales").click();
  told.scales.push(style(rows).display);
  return told;
}};
onload = () => {{
  const told = [...document.querySelectorAll("iframe")].map((frame) => {{
    try {{ return tell(frame); }} catch (error) {{ return {{error: String(error.stack)}}; }}
  }});
  document.getElementById("told").textContent = JSON.stringify(told);
}};
</script></body>"""


def told_by(text: str, folder: Path, *flags: str) -> list[dict[str, Any]]:
    """What the page says of itself, a dictionary a width."""
    assert BROWSER
    frames = "".join(f'<iframe width="{w}" height="800" srcdoc="{html.escape(text)}"></iframe>' for w in WIDTHS)
    (folder / "harness.html").write_text(HARNESS.format(frames=frames), encoding="utf-8")
    command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000"]
    address = (folder / "harness.html").as_uri()
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert found and found.group(1), done.stderr[-2000:]
    told: list[dict[str, Any]] = json.loads(html.unescape(found.group(1)))
    assert not [one["error"] for one in told if "error" in one]
    return told


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    return write_suite(folder, attacks=("full", "a_label_that_is_rather_long", "clean"), guidances=(1.5, 7.5))


@pytest.fixture(scope="module", params=["light", "dark"])
def told(
    request: pytest.FixtureRequest, suite: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[dict[str, Any]]]:
    dark = ("--blink-settings=preferredColorScheme=0",) if request.param == "dark" else ()
    return request.param, told_by(render(load_run(suite)), tmp_path_factory.mktemp(request.param), *dark)


def check_layout(page: dict[str, Any], width: int) -> None:
    assert page["width"] == width and page["scroll"] <= width
    assert page["outside"] == [] and page["cut"] == []


def test_nothing_is_wider_than_the_screen_and_no_label_is_cut(told: tuple[str, list[dict[str, Any]]]) -> None:
    for page, width in zip(told[1], WIDTHS, strict=True):
        check_layout(page, width)


def test_the_script_runs_under_the_pages_own_policy(told: tuple[str, list[dict[str, Any]]]) -> None:
    for page in told[1]:
        assert page["script"] and page["controls"] and page["copy"] and page["loaded"] == 0


def test_the_slider_changes_pictures_words_and_scores(told: tuple[str, list[dict[str, Any]]]) -> None:
    for page in told[1]:
        sources, states, values, _, peeked, scores = zip(*page["steps"], strict=True)
        assert len(set(sources)) == len(set(scores)) == 5 and all(s.startswith("data:image/webp") for s in sources)
        assert states[0] == "before any attack, guidance 1.5" and values[1] == "after 50 steps of the attack “full”"
        assert page["labels"] == ["0", "50", "100", "200", "300"]
        assert not any(peeked), "a new picture is hidden again"
        assert page["other"][0] not in sources and "a_label_that_is_rather_long" in page["other"][1]


def test_hidden_pictures_show_when_pressed_and_all_at_once(told: tuple[str, list[dict[str, Any]]]) -> None:
    for page in told[1]:
        hidden, pressed, all_shown = page["blur"]
        assert hidden.startswith("blur(") and pressed == all_shown == "none"


def test_the_guidance_scales_are_shown_on_demand(told: tuple[str, list[dict[str, Any]]]) -> None:
    assert all(page["scales"] == ["none", "table-row"] for page in told[1])


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_light_and_dark_are_what_they_say_and_readable(told: tuple[str, list[dict[str, Any]]]) -> None:
    scheme, pages = told
    for page in pages:
        paper, ink = luminance(page["page"]), luminance(page["text"])
        assert (paper > ink) is (scheme == "light")
        assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 10


def test_a_comparison_fits_too(suite: Path, tmp_path: Path) -> None:
    other = write_suite(tmp_path / "the_other_run", attacks=("full", "clean"), guidances=(1.5, 7.5))
    text = render(join([load_run(suite), load_run(other)], ["a_run_with_a_long_name", "the_other_run"]))
    for page, width in zip(told_by(text, tmp_path), WIDTHS, strict=True):
        check_layout(page, width)
