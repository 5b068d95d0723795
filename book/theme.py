"""A Sphinx extension: what is changed of the theme, so that pages are light and without errors.

Gone are Thebe, which runs no cell here and is loaded twice, and the icons' script of 1.5 MB: the theme's style sheets
draw the same icons with fonts, of which :func:`icons` makes small ones.
"""

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: The theme's fonts of icons: file, name, weight.
FONTS = (
    ("fa-solid-900", "Font Awesome 6 Free", 900),
    ("fa-regular-400", "Font Awesome 6 Free", 400),
    ("fa-brands-400", "Font Awesome 6 Brands", 400),
)
#: What is replaced in every page that the theme wrote.
REPLACED = (
    (re.compile(r'<script defer src="[^"]*/fontawesome\.js[^"]*"></script>\n?'), ""),
    # A list that holds no list items, for who hears the page.
    (re.compile(r'<div role="list" class="citation-list">'), '<div class="citation-list">'),
    # The arrow that unfolds the sidebar's chapters has no text.
    (re.compile(r"<summary>(?=<span class=\"toctree-toggle\")"), '<summary aria-label="Sections of this chapter">'),
)


def setup(app: "Sphinx") -> dict[str, Any]:
    """Connect the changes; it must be set up after the extensions that it takes back."""
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if one.handler.__module__ != "sphinx_thebe"]
    app.registry.css_files[:] = [file for file in app.registry.css_files if "thebe" not in file[0]]
    app.connect("html-page-context", _of_a_page, priority=900)
    app.connect("build-finished", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _of_a_page(app: "Sphinx", pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out scripts that stand twice, at the start and again for each page, and a button that leads nowhere."""
    seen: set[str] = set()
    once = []
    for script in context.get("script_files", []):
        key = str(script.filename) + str(getattr(script, "attributes", {}).get("body"))
        if key not in seen:
            seen.add(key)
            once.append(script)
    context["script_files"] = once
    if pagename.startswith("book/api"):  # made by the build, so there is nothing to edit
        for group in context.get("header_buttons", []):
            if "buttons" in group:
                group["buttons"] = [one for one in group["buttons"] if one.get("label") != "source-edit-button"]


def _mend(app: "Sphinx", error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            text = path.read_text(encoding="utf-8")
            new = text
            for pattern, instead in REPLACED:
                new = pattern.sub(instead, new)
            if new != text:
                path.write_text(new, encoding="utf-8")


def icons() -> str:
    """A style sheet with the icons that the theme's own pages show, a few kB; others come from its whole fonts."""
    import pydata_sphinx_theme
    import sphinx_book_theme
    from fontTools import subset, ttLib

    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme"
    sources = [*theme.rglob("*.html"), *Path(sphinx_book_theme.__file__).parent.rglob("*.html")]
    sources += Path(sphinx_book_theme.__file__).parent.rglob("*.py")
    named = set(re.findall(r"\bfa-([a-z-]+)", "".join(path.read_text(encoding="utf-8") for path in sources)))
    style = (theme / "static" / "styles" / "pydata-sphinx-theme.css").read_text(encoding="utf-8")
    shown = set(re.findall(r"--pst-icon-[\w-]+:\"(.)\"", style))
    for names, code in re.findall(r"((?:\.fa-[\w-]+:before,?)+)\{content:\"\\([0-9a-f]+)\"\}", style):
        if named & set(re.findall(r"\.fa-([\w-]+):", names)):
            shown.add(chr(int(code, 16)))
    fonts = theme / "static" / "vendor" / "fontawesome" / "webfonts"
    rules = []
    for file, family, weight in FONTS:
        font = ttLib.TTFont(fonts / f"{file}.ttf", recalcTimestamp=False)
        held = sorted(shown & {chr(code) for code in font.getBestCmap()})
        options = subset.Options(flavor="woff", layout_features=[], notdef_outline=True)
        smaller = subset.Subsetter(options)
        smaller.populate(text="".join(held))
        smaller.subset(font)
        font.flavor = "woff"
        font.save(buffer := io.BytesIO())
        data = base64.b64encode(buffer.getvalue()).decode()
        where = ",".join(f"U+{ord(sign):x}" for sign in held)
        rules.append(
            f'@font-face{{font-family:"{family}";font-weight:{weight};font-style:normal;font-display:block;'
            f'src:url(data:font/woff;base64,{data}) format("woff");unicode-range:{where}}}'
        )
    return "\n".join(rules) + "\n"
