"""A browser, the built book behind a server, and the sheet of screenshots."""

import html
import http.server
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "book"))
import chromium

ROOT = Path(__file__).parent.parent.parent
HTML = ROOT / "_build" / "html"
SHEET = ROOT / "_build" / "browser"


def pages():
    """The pages of the book, as addresses below its root."""
    paths = [path.relative_to(HTML) for path in sorted(HTML.rglob("*.html"))]
    return [path.as_posix() for path in paths if path.parts[0] not in ("_static", "_downloads")]


def pytest_generate_tests(metafunc):
    if "page_name" in metafunc.fixturenames:
        metafunc.parametrize("page_name", pages())


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def book():
    """The address of the book."""
    assert (HTML / "index.html").is_file(), "build the book first: make html"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(HTML))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    try:
        program = chromium.find()
    except SystemExit as error:
        pytest.exit(str(error), returncode=2)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program)
        yield opened
        opened.close()


@pytest.fixture(scope="session", autouse=True)
def sheet():
    """The folder of the screenshots; at the end a page that shows all of them side by side."""
    SHEET.mkdir(parents=True, exist_ok=True)
    for old in SHEET.glob("*.jpeg"):
        old.unlink()
    yield SHEET
    cells = "".join(
        f'<figure><img src="{path.name}" loading="lazy" height="420">'
        f"<figcaption>{html.escape(path.stem)}</figcaption></figure>"
        for path in sorted(SHEET.glob("*.jpeg"))
    )
    style = "body{display:flex;flex-wrap:wrap;gap:1rem;font:0.8rem sans-serif}figure{margin:0}"
    (SHEET / "index.html").write_text(f"<!doctype html><title>Screenshots</title><style>{style}</style>{cells}")
    print(f"\nScreenshots: {(SHEET / 'index.html').as_uri()}")
