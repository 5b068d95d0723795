"""Every page at two widths, light and dark, by keyboard and without JavaScript; the search; the explorer."""

import re
from functools import cache
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe

from .conftest import HTML

VIEWS = [(1400, "light"), (1400, "dark"), (390, "light"), (390, "dark")]
#: What axe finds serious in the theme itself and is left: rule and a part of the element's HTML, with the reason.
THEME: dict[tuple[str, str], str] = {}
#: What a reader looks for, in prose.
TERMS = ["bandwidth", "cite", "null", "GPU", "own model"]
NEW_TASK = "ecqa|local"


def opened(browser, address, width=1400, scheme="light", **options):
    """A page, and the list of what its console said that is an error."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"{request.url} failed"))
    page.goto(address, wait_until="load", timeout=120_000)  # a busy machine is no defect
    return page, said


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_page(browser, book, sheet, page_name, width, scheme):
    page, said = opened(browser, f"{book}/{page_name}", width, scheme)
    page.wait_for_timeout(150)
    name = page_name.removesuffix(".html").replace("/", "-")
    page.screenshot(path=sheet / f"{name}-{width}-{scheme}.jpeg", type="jpeg", quality=50)
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    page.wait_for_timeout(150)
    # What fades in has less contrast on its way.
    page.wait_for_function("document.getAnimations().every(one => one.playState === 'finished')")
    assert said == [], "the console is quiet"
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels too wide"
    missing = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert missing == []
    problems = [
        f"{found['id']} ({found['impact']}): {node['html'][:200]}"
        for found in Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
        if not any(found["id"] == rule and part in node["html"] for rule, part in THEME)
    ]
    page.close()
    assert problems == []


@cache
def anchors(path):
    text = path.read_text(encoding="utf-8")
    return set(re.findall(r"""\b(?:id|name)=["']([^"']+)""", text))


def test_no_internal_link_is_broken(page_name):
    text = (HTML / page_name).read_text(encoding="utf-8")
    broken = []
    for link in set(re.findall(r"""\b(?:href|src)=["']([^"']+)""", text)):
        target, anchor = urldefrag(urljoin(f"/{page_name}", link))
        if urlparse(link).scheme:
            continue
        path = HTML / unquote(urlparse(target).path).lstrip("/")
        if not path.is_file() or (anchor and path.suffix == ".html" and unquote(anchor) not in anchors(path)):
            if anchor not in ("", "#") and path.name == "explorer.html" and "=" in anchor:
                continue  # a choice, not a place
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("term", TERMS)
def test_the_search_finds_prose_first(browser, book, term):
    page, _ = opened(browser, f"{book}/search.html?q={term.replace(' ', '+')}")
    first = page.locator("#search-results ul.search li a").first
    first.wait_for()
    page.wait_for_timeout(500)
    address = first.get_attribute("href")
    page.close()
    assert address.startswith("book/") and not address.startswith("book/api"), address


def drawn(page):
    page.wait_for_function("document.getElementById('explorer-figure').data?.length > 0")
    return page.evaluate("document.getElementById('explorer-figure').data.map(trace => [trace.name, trace.y])")


def test_the_explorer_answers(browser, book):
    page, said = opened(browser, f"{book}/book/explorer.html")
    first, status = drawn(page), page.inner_text("#explorer-status")
    page.select_option("select[name=task]", NEW_TASK)
    second = drawn(page)
    assert first != second and status != page.inner_text("#explorer-status")
    assert "source=local" in page.url
    layer_row = page.locator("#explorer-table tr", has_text="layer 20").first
    assert layer_row.locator("td").count() == 1 + page.locator("#explorer-quantities input:checked").count()
    again, _ = opened(browser, page.url)
    assert drawn(again) == second, "the address keeps the choice"
    assert "--profile smollm2-ecqa" in again.inner_text("#explorer-made")
    again.close()
    page.close()
    assert said == []


def test_the_explorer_by_keyboard(browser, book):
    page, _ = opened(browser, f"{book}/book/explorer.html")
    drawn(page)
    before = page.inner_text("#explorer-n")
    page.focus("input[name=n]")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#explorer-n") != before
    reached = set()
    page.focus("select[name=model]")
    for _ in range(40):
        reached.add(page.evaluate("document.activeElement.name || document.activeElement.value"))
        page.keyboard.press("Tab")
    page.close()
    assert {"model", "task", "split", "step", "n", "shape", "predictive_information"} <= reached


def test_the_explorer_works_from_a_file(browser):
    page, said = opened(browser, (HTML / "book" / "explorer.html").as_uri())
    assert drawn(page)
    page.close()
    assert said == []


def test_without_javascript_and_in_print_there_is_the_static_figure(browser, book):
    page, _ = opened(browser, f"{book}/book/explorer.html", java_script_enabled=False)
    assert page.locator(".explorer-static img").is_visible() and not page.locator("#explorer").is_visible()
    page.close()
    page, _ = opened(browser, f"{book}/book/explorer.html")
    drawn(page)
    assert not page.locator(".explorer-static img").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".explorer-static img").is_visible() and not page.locator("#explorer").is_visible()
    page.close()
