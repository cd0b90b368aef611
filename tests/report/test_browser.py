"""The page in a browser: it loads, draws, filters, sorts and chooses, without an error and in time for a phone and for print."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hwsim.report.page.inputs import read_inputs

pytest.importorskip("plotly")
pytest.importorskip("jinja2")
from hwsim.report.page import build_page

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("needs Chromium or Chrome")
    with api.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield launched
        launched.close()


def opened(browser, here, names, **context):
    """A page of some result files, and what it complained about."""
    path = here / "page.html"
    path.write_text(build_page(read_inputs([Path(name) for name in names], lambda _: []), "Title"))
    page = browser.new_context(**context).new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    return page, complaints


def test_all_plots_are_drawn_without_a_complaint(browser, here):
    page, complaints = opened(browser, here, ["open.json", "closed.json"])
    plots = page.locator(".plot")
    assert plots.count() == 8
    for index in range(plots.count()):
        assert plots.nth(index).locator(".main-svg").count() > 0
    assert page.locator("#hits .heatmaplayer image").count() == 1
    assert complaints == []


def test_the_filter_and_the_order(browser, here):
    page, complaints = opened(browser, here, ["open.json"])
    assert page.locator("#count").text_content() == "3 of 3 runs"
    page.fill("#filter", "dip-ca pixel")
    assert page.locator("#count").text_content() == "1 of 3 runs"
    assert page.locator("#runs tbody tr:visible").count() == 1
    page.fill("#filter", "")
    speeds = page.locator("#runs thead button", has_text="tokens/s")
    speeds.focus()
    page.keyboard.press("Enter")

    def column():
        return [
            float(cell.replace(",", "")) for cell in page.locator("#runs tbody tr td:nth-child(3)").all_text_contents()
        ]

    assert column() == sorted(column())
    page.keyboard.press("Enter")
    assert column() == sorted(column(), reverse=True)
    assert complaints == []


def test_a_run_is_chosen(browser, here):
    page, complaints = opened(browser, here, ["open.json"])
    shown = "() => document.getElementById('hits').data.map(trace => trace.visible)"
    assert page.evaluate(shown) == [True, False]
    page.select_option("#hits-run", "1")
    assert page.evaluate(shown) == [False, True]
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser, here, scheme):
    page, complaints = opened(
        browser, here, ["many.json", "closed.json"], viewport={"width": 360, "height": 700}, color_scheme=scheme
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert complaints == []


def test_it_prints(browser, here):
    page, complaints = opened(browser, here, ["open.json"])
    made = page.pdf(format="A4")
    assert made.startswith(b"%PDF")
    assert complaints == []


def test_it_can_be_read_without_seeing_it(browser, here):
    page, _ = opened(browser, here, ["open.json", "closed.json"])
    assert page.locator("h1").count() == 1
    assert page.evaluate(
        "[...document.querySelectorAll('.plot')].every(each => each.getAttribute('aria-label').length > 20)"
    )
    assert page.evaluate("[...document.querySelectorAll('input, select')].every(each => each.labels.length === 1)")
    assert page.evaluate(
        "[...document.querySelectorAll('section')].every(each => document.getElementById(each.getAttribute('aria-labelledby')))"
    )
    assert page.locator("figure + details table").count() == page.locator(".plot").count()


def test_two_hundred_runs_are_less_than_ten_megabytes(browser, here):
    page, complaints = opened(browser, here, ["many.json"])
    assert (here / "page.html").stat().st_size < 10e6
    assert page.locator("#count").text_content() == "200 of 200 runs"
    assert complaints == []
