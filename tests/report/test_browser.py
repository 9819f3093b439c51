"""The page in a browser: Playwright and a Chromium of the system, or the tests are skipped."""

import json
import shutil

import numpy as np
import pytest

from byol_jax.report import compare

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
# Of Chromium's own drawing, which a page cannot help.
NOT_ERRORS = "GL Driver Message", "WebGL"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # Without a GPU, WebGL is computed by SwiftShader.
        options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, page_file):
    return open_page(browser, page_file)


def open_page(browser, file):
    """The page at the size of a laptop; errors of the console, and requests."""
    errors, requests = [], []
    page = browser.new_page(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    return page, errors, requests


@pytest.fixture
def page(opened):
    return opened[0]


def test_the_map_and_the_curves_are_drawn_without_errors_or_requests(opened, page_file):
    page, errors, requests = opened
    assert page.evaluate("document.getElementById('plot').data[0].x.length") == 60
    assert page.locator("#plot canvas, #plot .scatterlayer").count() > 0
    assert page.locator("#curves .scatterlayer .trace").count() > 0
    assert page.locator("#legend button").count() == 3
    assert not [text for text in errors if not any(known in text for known in NOT_ERRORS)]
    outside = [url for url in requests if not url.startswith(("data:", "blob:"))]
    assert outside == [page_file.as_uri()]


def test_a_click_shows_neighbours_after_and_before(page):
    page.locator("#clusters .thumb").first.click()
    assert page.locator("#panel .near").count() == 2
    assert page.locator("#panel .near .thumb").count() == 16
    assert page.evaluate("document.getElementById('plot').data[2].x.length") == 1
    assert page.evaluate("location.hash") == "#map"
    # A click on a mark of the map does the same.
    place = page.evaluate(
        """() => {
          const plot = document.getElementById("plot"), { xaxis, yaxis } = plot._fullLayout;
          plot.scrollIntoView({ behavior: "instant", block: "center" });
          const box = plot.getBoundingClientRect(), { x, y } = plot.data[0];
          return [
            box.left + xaxis.l2p(x[13]) + xaxis._offset,
            box.top + yaxis.l2p(y[13]) + yaxis._offset,
          ];
        }"""
    )
    page.mouse.move(*place, steps=3)
    page.wait_for_selector("#tip:not([hidden])")
    page.mouse.click(*place)
    page.wait_for_function("document.querySelector('#panel strong').textContent === '13'")


def test_the_map_is_moved_by_keys(page):
    page.locator("#plot").focus()
    before = page.locator("#panel strong").text_content()
    width = "document.getElementById('plot')._fullLayout.xaxis.range.reduce((a, b) => b - a)"
    whole = page.evaluate(width)
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    assert page.locator("#panel strong").text_content() is not None
    page.keyboard.press("+")
    page.wait_for_function(f"{width} < {whole}")
    page.keyboard.press("0")
    page.wait_for_function(f"{width} === {whole}")
    assert before


def test_images_are_found_by_name_and_class(page):
    page.locator("#find").fill("two")
    assert page.locator("#hits [role=status]").text_content() == "20 images"
    page.locator("#hits button").nth(2).click()
    assert page.locator("#panel strong").text_content() == "7"
    assert "two" in page.locator("#panel .chosen").text_content()
    page.locator("#find").fill("")
    assert not page.locator("#hits").is_visible()


def test_one_class_is_shown_alone(page):
    page.locator("#legend button").nth(1).click()
    assert page.locator("#legend [aria-pressed=true]").count() == 1
    sizes = "new Set([document.getElementById('plot').data[0].marker.size].flat()).size"
    page.wait_for_function(f"{sizes} === 2")
    page.locator("#legend button").nth(1).click()
    page.wait_for_function(f"{sizes} === 1")


def test_the_theme_follows_the_system_and_the_button(page):
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(back)
    assert dark != light
    page.locator("#theme").click()
    assert page.evaluate(back) == light and page.locator("#theme").text_content() == "Dark"
    page.locator("#theme").click()
    assert page.evaluate(back) == dark
    page.emulate_media(color_scheme="light")


def test_a_telephone_needs_no_horizontal_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 1280, "height": 900})


def test_paper_has_no_controls(page):
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator("#theme").is_visible()
    assert page.locator("#clusters .thumb").first.is_visible()
    page.emulate_media(media="screen")


def test_an_old_browser_says_what_it_lacks(browser, page_file):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(page_file.as_uri())
    assert "too old" in page.locator("#message").text_content()
    assert page.locator("#accuracy table").first.is_visible()
    page.close()


def test_curves_of_runs_change_with_axis_smoothing_and_legend(browser, runs, tmp_path):
    long = tmp_path / "long"
    long.mkdir()
    (long / "config.json").write_bytes((runs[0] / "config.json").read_bytes())
    rows = [{"step": step, "byol_loss": step % 3} for step in range(1, 41)]
    (long / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, errors, requests = open_page(browser, compare([runs[0], long], tmp_path / "page.html"))

    def traces(what):
        return page.evaluate(f"document.querySelector('.chart').data.map(trace => {what})")

    assert traces("trace.name") == ["first", "long"]
    page.select_option("#over", "epoch")
    assert traces("trace.x.slice(0, 3)") == [[1, 2, 3], [0.5, 1, 1.5]]
    page.select_option("#over", "time")
    assert traces("trace.x.slice(0, 3)") == [[4, 8, 12], [None] * 3]
    assert page.locator("#untimed").is_visible()

    page.locator("#smoothing").fill("0.8")
    _, raw, smoothed = traces("trace.y")
    weights = 0.8 ** np.arange(40)
    wanted = [weights[: k + 1] @ raw[k::-1] / weights[: k + 1].sum() for k in range(40)]
    assert raw == [row["byol_loss"] for row in rows]
    np.testing.assert_allclose(smoothed, wanted, rtol=1e-12)

    page.locator("#legend button").nth(1).click()
    assert page.locator("#legend [aria-pressed=false]").count() == 1
    assert traces("trace.visible") == [True, False, False]
    page.locator("#more summary").click()
    page.wait_for_function("document.querySelector('#more .chart').data?.length === 1")
    light = page.evaluate("document.querySelector('.chart').layout.font.color")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"document.querySelector('.chart').layout.font.color !== '{light}'")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not [text for text in errors if not any(known in text for known in NOT_ERRORS)]
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == requests[:1]
    page.close()
