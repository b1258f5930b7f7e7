"""The built site: strict, without a console error, small pages, no request that leaves the machine, and a search that finds."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
sync_api = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parents[1]
LARGEST = 1_500_000  # bytes of a page, whole
LOOKED_AT = ("index.html", "results.html", "choosing.html", "concepts/gates.html", "reference/api.html", "reference/commands.html", "results/routed-rivals.html", "results/records.html", "tutorials/first.html", "speed.html")  # fmt: skip
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Where the site was built."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    if not shutil.which("chromium"):
        pytest.skip("no chromium here")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(chromium, request):
    """A page that writes down errors and requests."""
    opened = chromium.new_page(viewport={"width": getattr(request, "param", 1280), "height": 900})
    opened.errors, opened.asked = [], []
    opened.on("console", lambda message: opened.errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("request", lambda asked: opened.asked.append(asked.url))
    yield opened
    opened.close()


def test_every_page_is_small(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert {file.name: file.stat().st_size for file in pages if file.stat().st_size > LARGEST} == {}


def test_every_experiment_and_hand_written_page_is_in_the_navigation(site):
    home = (site / "index.html").read_text()
    for file in (ROOT / "docs").rglob("*.md"):
        name = str(file.relative_to(ROOT / "docs").with_suffix(".html"))
        assert f'href="{name}"' in home or name == "log.html" or "templates" in name, name


@pytest.mark.parametrize("page", WIDTHS.values(), ids=WIDTHS, indirect=True)
def test_pages_open_without_an_error_and_fit_the_width(page, address):
    for name in LOOKED_AT:
        page.goto(f"{address}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the window"
        assert page.locator("h1").first.is_visible(), name
        broken = "[...document.images].filter(each => each.complete && !each.naturalWidth).map(each => each.src)"
        assert page.evaluate(broken) == [], name
    assert page.errors == []
    assert [url for url in page.asked if not url.startswith((address, "data:"))] == []


def test_search_finds_router(page, address):
    page.goto(f"{address}/index.html")
    field = page.locator("[data-md-component=search-query]")
    links = page.locator(".md-search-result__link[href*='concepts/router']")
    for _ in range(60):  # what is typed before the page's script listens is lost
        field.fill("")
        field.fill("router")
        page.wait_for_timeout(500)
        if links.count():
            break
    links.first.wait_for()  # it opens in an animation
    assert page.errors == []


def test_records_are_filtered_and_sorted(page, address):
    page.goto(f"{address}/results/records.html#routed-rivals")
    assert page.locator("#experiment").input_value() == "routed-rivals"
    page.fill("#words", "select oracle")
    assert page.locator("#rows tr").count() == 0
    page.fill("#words", "eval union mean")
    assert page.locator("#rows tr").count() >= 1
    page.fill("#words", "eval mean")
    page.click("button[data-column='6']")
    values = [float(text) for text in page.locator("#rows tr td:nth-child(7)").all_inner_texts() if text]
    assert values == sorted(values) and len(values) > 5
    assert page.errors == []
