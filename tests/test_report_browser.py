"""report.html as people meet it: in Chromium, on a phone and on a desktop, in light and in dark, and printed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.reporting.html import SECTIONS, render_html
from tests.reports import example_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SIZES = ((360, 780), (1440, 900))
PAGES = ("example", "crowded", "run")
SCHEMES = ("light", "dark")
CONTRAST = 4.5  # of text, at least: WCAG 2.1, level AA

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver: apt-get install chromium chromium-driver"
)

# Everything that is wrong with the page as it is laid out now, as lines of text.
PROBLEMS = """
const problems = [], width = window.innerWidth;
const say = (what, element, more) => problems.push(
  what + ': ' + (element.textContent || '').trim().slice(0, 40) + ' <' + element.tagName + '> ' + (more || ''));
if (document.documentElement.scrollWidth > width) problems.push('the page scrolls sideways: '
  + document.documentElement.scrollWidth + ' of ' + width);
const shown = (element) => element.checkVisibility();
for (const element of document.querySelectorAll('figure, figure > svg, .scroll, img, pre')) {
  if (!shown(element)) continue;
  const box = element.getBoundingClientRect();
  if (box.width < 20 || box.height < 10) say('no size', element);
  if (box.left < -0.5 || box.right > width + 0.5) say('outside the window', element, box.left + '-' + box.right);
}
const parse = (colour) => {
  const [red, green, blue, alpha] = (colour.match(/[\\d.]+/g) || []).map(Number);
  return [red, green, blue, alpha ?? 1];
};
const over = (front, back) => front.slice(0, 3).map((c, i) => front[3] * c + (1 - front[3]) * back[i]).concat(1);
const luminance = (colour) => {
  const [r, g, b] = colour.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const inside = (box, x, y) => box.left <= x && x <= box.right && box.top <= y && y <= box.bottom;
const known = new Map();  // svg -> its filled shapes with their boxes, in the order of drawing
function shapes(svg) {
  if (!known.has(svg)) known.set(svg, [...svg.querySelectorAll('rect, polygon, circle')].map(
    (shape) => [shape, shape.getBoundingClientRect()]));
  return known.get(svg);
}
function behind(element) {
  const backs = [];
  for (let up = element; up; up = up.parentElement) backs.unshift(parse(getComputedStyle(up).backgroundColor));
  let back = backs.reduce((below, colour) => over(colour, below), [255, 255, 255, 1]);
  if (element.tagName === 'text') {
    const box = element.getBoundingClientRect(), x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
    for (const [shape, outline] of shapes(element.closest('svg'))) {
      if (!(shape.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING)) break;
      if (!inside(outline, x, y)) continue;
      const style = getComputedStyle(shape), fill = parse(style.fill);
      back = over([fill[0], fill[1], fill[2], fill[3] * Number(style.fillOpacity)], back);
    }
  }
  return back;
}
for (const element of document.body.querySelectorAll('*')) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !shown(element) || ['title', 'desc', 'STYLE'].includes(element.tagName)) continue;
  const style = getComputedStyle(element), front = parse(element.tagName === 'text' ? style.fill : style.color);
  const back = behind(element), lights = [luminance(over(front, back)), luminance(back)].sort((a, b) => b - a);
  const contrast = (lights[0] + 0.05) / (lights[1] + 0.05);
  if (contrast < arguments[0]) say('contrast ' + contrast.toFixed(2), element);
}
for (const svg of document.querySelectorAll('svg')) {
  if (!shown(svg)) continue;
  const whole = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')];
  const boxes = texts.map((text) => text.getBoundingClientRect());
  boxes.forEach((box, i) => {
    if (box.left < whole.left - 3 || box.right > whole.right + 3 || box.bottom > whole.bottom + 3)
      say('text leaves its chart', texts[i], svg.getAttribute('aria-labelledby'));
    for (let j = 0; j < i; j++) {
      const wide = Math.min(box.right, boxes[j].right) - Math.max(box.left, boxes[j].left);
      const high = Math.min(box.bottom, boxes[j].bottom) - Math.max(box.top, boxes[j].top);
      if (wide > 1.5 && high > 5) say('texts overlap', texts[i], texts[j].textContent);
    }
  });
}
return problems;
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests here, which logs what it is told and what it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is in the dev extra")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section."""
    return written(example_report(), tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="session")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(crowded_report(), tmp_path_factory.mktemp("crowded"))


@pytest.fixture(scope="session")
def run(finished: Path) -> Path:
    """The report of a run of the pipeline."""
    return finished / "report.html"


def written(report: dict[str, Any], directory: Path) -> Path:
    page = directory / "report.html"
    page.write_text(render_html(report), encoding="utf-8")
    return page


def crowded_report(layers: int = 120, variants: int = 20) -> dict[str, Any]:
    """Long names, many layers and variants, one of which answers no better than chance."""
    report = example_report()
    names = [f"features.{i // 6}.block.{i % 6}.convolution_depthwise" for i in range(layers)]
    report["layers"] = [{**report["layers"][i % 5], "name": name} for i, name in enumerate(names)]
    found = report["sensitivity"]
    report["sensitivity"] = {**found, "layers": names, "drops": [found["drops"][i % 5] for i in range(layers)]}
    for i in range(len(report["variants"]), variants):
        copied = json.loads(json.dumps(report["variants"][3 if i % 2 else 4]))
        copied |= {"name": f"pruned-sparse-int8-per-channel-rounded-{i}", "zip_bytes": copied["zip_bytes"] + 377 * i}
        copied["not_shipped"] = "not smaller"
        if i == variants - 1:
            copied["accuracy"] = {"value": 0.1, "low": 0.09, "high": 0.11, "n": 10_000}
        report["variants"].append(copied)
    return report


def opened(browser: Any, page: Path, width: int, height: int, scheme: str, media: str = "") -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wish = {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
    browser.get(page.as_uri())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_all_of_the_page_fits_and_can_be_read(
    browser: Any, request: pytest.FixtureRequest, name: str, width: int, height: int, scheme: str
) -> None:
    opened(browser, request.getfixturevalue(name), width, height, scheme)
    assert browser.execute_script(PROBLEMS, CONTRAST) == []
    verdict = browser.find_element("tag name", "h1")
    assert verdict.is_displayed()
    assert verdict.rect["y"] + verdict.rect["height"] < height, "the verdict is not on the first screen"
    assert verdict.rect["height"] < height / 9, "the verdict takes more than three lines"
    assert verdict.text.startswith(("Passed: ", "Not passed: "))
    browser.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = !each.open; })")
    assert browser.execute_script(PROBLEMS, CONTRAST) == [], "with what was folded opened"


def test_the_check_sees_what_is_wrong(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    texts = '<text x="0" y="20">one</text><text x="4" y="20">over it</text><text x="190" y="40">outside</text>'
    page.write_text(
        f'<body><p style="color: #999">pale</p><figure><svg viewBox="0 0 200 50" width="200">{texts}</svg></figure>'
        '<div style="width: 900px">wide</div></body>',
        encoding="utf-8",
    )
    opened(browser, page, 360, 780, "light")
    found = [line.partition(":")[0] for line in browser.execute_script(PROBLEMS, CONTRAST)]
    assert found == ["the page scrolls sideways", "contrast 2.85", "texts overlap", "text leaves its chart"]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_asks_for_nothing_and_complains_of_nothing(
    browser: Any, request: pytest.FixtureRequest, name: str
) -> None:
    page = request.getfixturevalue(name)
    browser.get_log("performance")  # of the pages before
    opened(browser, page, 360, 780, "light")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:image/png;")] == [page.as_uri()]
    assert browser.get_log("browser") == []


def test_every_section_is_there_with_its_charts_and_tables(browser: Any, example: Path) -> None:
    opened(browser, example, 1440, 900, "light")
    sections = browser.find_elements("css selector", "main > section")
    assert [(s.get_attribute("id"), s.find_element("tag name", "h2").text) for s in sections] == list(SECTIONS)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('section')].map((s) => [s.id, s.querySelectorAll('svg').length,"
        " s.querySelectorAll('table').length, s.querySelectorAll('img').length])"
    )
    assert {name: (charts, tables, pictures) for name, charts, tables, pictures in drawn} == {
        "journey": (3, 0, 0),
        "variants": (2, 1, 0),
        "latency": (2, 2, 0),
        "limit": (1, 0, 0),
        "size": (3, 1, 0),
        "layers": (7, 0, 0),
        "sensitivity": (1, 0, 0),
        "classes": (1, 0, 0),
        "changed": (0, 0, 6),
        "quantization": (0, 1, 0),
        "sparsity": (0, 1, 0),
        "placement": (0, 1, 0),
        "stages": (0, 0, 0),
        "provenance": (0, 0, 0),
    }


@pytest.mark.parametrize("name", PAGES)
def test_every_chart_tells_its_figures_in_words(browser: Any, request: pytest.FixtureRequest, name: str) -> None:
    opened(browser, request.getfixturevalue(name), 1440, 900, "light")
    told = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map((svg) => [svg.getAttribute('role'),"
        " ...svg.getAttribute('aria-labelledby').split(' ').map((id) => document.getElementById(id).textContent)])"
    )
    assert told
    for role, title, figures in told:
        assert role == "img"
        assert title
        assert any(letter.isdigit() for letter in figures), title


def test_dark_is_dark_and_paper_is_white(browser: Any, example: Path) -> None:
    def background() -> Any:
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    opened(browser, example, 1440, 900, "dark")
    assert background() == "rgb(20, 22, 26)"
    opened(browser, example, 700, 1000, "dark", media="print")  # about A4 without its margins
    assert background() == "rgb(255, 255, 255)"
    hidden = "return [...document.querySelectorAll('details > *')].filter((each) => !each.checkVisibility()).length"
    assert browser.execute_script(hidden) == 0, "paper cannot be opened"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 700
