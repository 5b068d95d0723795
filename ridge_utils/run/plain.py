"""An executed notebook for a reader outside the book: plain Markdown in place of MyST, and one HTML page of its own.

JupyterLab and nbconvert know Markdown and mathematics, but no roles and directives of MyST, no captions from a cell's
metadata and no tags that fold.
"""

import ast
import functools
import html as html_module
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridge_utils import cache, notebooks
from ridge_utils.outputs import GLUED

if TYPE_CHECKING:
    import nbformat

ROOT = notebooks.NOTEBOOKS.parent
_ROLE = re.compile(r"(?<!\w)\{([\w:+-]+)\}`([^`]*(?:``[^`]*)*)`")
_OPENED = re.compile(r"^\s*(:{3,}|`{3,})\{([\w:-]+)\}\s*(.*)$")
_FENCE = re.compile(r"^\s*(:{3,}|`{3,})\s*$")
_MATHEMATICS = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.DOTALL)
_CODE = re.compile(r"(^\s*```.*?^\s*```\s*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)

_TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
main { max-width: 60rem; margin: auto; padding: 0 1rem; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
.jp-RenderedImage img { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon table { display: block; overflow-x: auto; }
.jp-RenderedHTMLCommon .sentences :is(td, th) { text-align: left; vertical-align: top; }
details > summary { cursor: pointer; color: #555; margin: 0.4rem 0; font-family: sans-serif; }
math[display="block"] { margin: 0.8rem 0; overflow-x: auto; }
</style>
{%- endblock -%}
{%- block data_png scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] }}" alt="{{ output | get_metadata('alt', 'image/png') }}">
</div>
{%- endblock -%}
{%- block input_group -%}
<details><summary>{{ cell.metadata.get('mystnb', {}).get('code_prompt_show', 'Show the code') }}</summary>
{{ super() }}</details>
{%- endblock -%}
{%- block output_group -%}
{%- if cell.metadata.get('jupyter', {}).get('outputs_hidden') -%}
<details><summary>Show the output</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
"""


def finish(path: Path, default: bool) -> None:
    """Rewrite an executed notebook, which may have stopped at a failing cell, in plain Markdown, its code folded.

    Captions speak of the default parameters, and are kept where those were used (``default``).
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    glued = _glued(notebook)
    captions = {
        cell.metadata["mystnb"]["figure"]["name"]: cell.metadata["mystnb"]["figure"].get("caption", "")
        for cell in notebook.cells
        if default and cell.get("outputs") and "name" in cell.metadata.get("mystnb", {}).get("figure", {})
    }
    figures = {name: number for number, name in enumerate(captions, 1)}
    heading, cells = "", []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = markdown(cell.source, glued, figures)
            heading = next((line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")), heading)
            continue
        tags = set(cell.metadata.get("tags", []))
        if tags & {"hide-input", "hide-cell"}:
            cell.metadata["jupyter"] = {"source_hidden": True}
        if tags & {"hide-output", "hide-cell"}:
            cell.metadata.setdefault("jupyter", {})["outputs_hidden"] = True
        shown = cell.metadata.get("mystnb", {})
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output.text = _without_bars(output.text)
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = markdown(data["text/markdown"], glued, figures)
            if "text/html" in data:  # written for the notebooks' folder
                built = f'="{ROOT.as_uri()}/_build/html/book/'
                data["text/html"] = (
                    data["text/html"].replace('="../book/', built).replace('="../', f'="{ROOT.as_uri()}/')
                )
            if "image/png" in data:
                described = shown.get("image", {}).get("alt", "") if default else ""
                output.metadata["image/png"] = {"alt": described or f"Figure: {heading}"}
        cell.outputs = [
            output
            for output in cell.get("outputs", [])
            if GLUED not in output.get("data", {}) and output.get("text", "something") != ""
        ]
        if number := figures.get(shown.get("figure", {}).get("name", "")):
            caption = markdown(captions[shown["figure"]["name"]], glued, figures)
            cells.append(nbformat.v4.new_markdown_cell(f"**Figure {number}.** {caption}"))
    notebook.cells = cells
    cache.write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def _without_bars(text: str) -> str:
    """What was written to stderr besides progress bars: warnings are kept."""
    return "".join(line + "\n" for line in re.split(r"[\r\n]+", text) if line.strip() and not re.search(r"%\|", line))


def markdown(text: str, glued: Mapping[str, Any] | None = None, figures: Mapping[str, int] | None = None) -> str:
    """MyST (roles, directives with colons or backticks, links to other pages, targets) as plain Markdown.

    ``glued`` are the values of the glue role, and ``figures`` the figures' numbers, by name; any other is "the figure".
    """
    lines: list[str] = []
    opened: list[tuple[str, str]] = []  # fences of directives, and what closes each
    in_code = options = False
    for line in text.splitlines():
        start = _OPENED.match(line) if not in_code else None
        if start:
            fence, name, title = start.groups()
            before, after = _DIRECTIVES.get(name, ("**{title}**" if title else "", ""))
            lines += ["", before.format(title=_roles(title, glued, figures)), ""]
            opened.append((fence, after))
            options = True
        elif options and re.match(r"^\s*:[\w-]+:", line):
            continue
        elif not in_code and opened and (end := _FENCE.match(line)) and end.group(1) == opened[-1][0]:
            lines += ["", opened.pop()[1], ""]
        elif line.lstrip().startswith("```"):
            in_code = not in_code
            lines.append(line)
        elif in_code:
            lines.append(line)
        elif not re.match(r"^\([\w-]+\)=\s*$|^%", line):
            lines.append(_roles(line, glued, figures))
            options = False
    plain = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return re.sub(r"\$\$\n+(.+?)\n+\$\$", r"$$\n\1\n$$", plain, flags=re.DOTALL)


#: What stands before and after the body of a directive.
_DIRECTIVES = {
    "dropdown": ("<details><summary>{title}</summary>", "</details>"),
    "math": ("$$", "$$"),
}


def _roles(line: str, glued: Mapping[str, Any] | None, figures: Mapping[str, int] | None) -> str:
    def role(match: re.Match[str]) -> str:
        name, content = match.group(1), match.group(2).strip("`")
        text, _, target = content.partition("<")
        text, target = text.strip(), target.rstrip("> ") or content
        kind = name.partition(":")[0]
        if kind == "cite":
            return _cited(content, in_text=name == "cite:t")
        if kind == "glue":
            key, _, form = content.partition(":")
            value = (glued or {}).get(key.strip("` "))
            return "(not computed)" if value is None else format(value, form.strip()) if form else str(value)
        if kind == "numref":
            return f"Figure {figures[target]}" if figures and target in figures else "the figure"
        if kind == "eq":
            return "the equation"
        if kind in ("py", "code"):
            return f"`{target.removeprefix('~')}`"
        return text or target

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match.group()
        return text or f"*{_title(target)}*"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", link, _ROLE.sub(role, line))


def _title(target: str) -> str:
    """The heading of a page of the book."""
    name, _, anchor = target.partition("#")
    paths = [ROOT / folder / Path(name).name for folder in ("book", "notebooks")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return (anchor or Path(name).stem).replace("-", " ").replace("_", " ")
    if path.suffix == ".ipynb":
        return notebooks.title(path.stem)
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


@functools.cache
def _sources() -> dict[str, tuple[str, str]]:
    """Author and year by key, from the bibliography."""
    sources = {}
    text = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    for key, entry in re.findall(r"@\w+\{([^,\s]+),(.*?)\n\}", text, re.DOTALL):
        fields = dict(re.findall(r"^\s*(author|year)\s*=\s*\{+(.*?)\}+,?\s*$", entry, re.MULTILINE))
        authors = fields.get("author", key).split(" and ")
        family = [name.partition(",")[0].strip("{} ") for name in authors]
        named = family[0] if len(family) == 1 else " and ".join(family) if len(family) == 2 else f"{family[0]} et al."
        sources[key] = (named.replace("and others", "et al."), fields.get("year", "undated"))
    return sources


def _cited(keys: str, in_text: bool) -> str:
    pairs = [_sources().get(key.strip(), (key.strip(), "")) for key in keys.split(",")]
    if in_text:
        return ", ".join(f"{author} ({year})" for author, year in pairs)
    return f"({'; '.join(f'{author}, {year}' for author, year in pairs)})"


def _glued(notebook: "nbformat.NotebookNode") -> dict[str, Any]:
    values = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if GLUED in output.get("data", {}):
                values[output.metadata["scrapbook"]["name"]] = ast.literal_eval(output["data"][GLUED])
    return values


def html(path: Path) -> Path:
    """Write a notebook that :func:`finish` has rewritten as one HTML page beside it that needs no network.

    Code is folded, and mathematics is MathML.
    """
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["title"] = next(
        (line.lstrip("# ") for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("# ")),
        path.stem,
    )
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _mathml(cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = _mathml(output["data"]["text/markdown"])
    page, _ = HTMLExporter(raw_template=_TEMPLATE).from_notebook_node(notebook)
    target = path.with_suffix(".html")
    cache.write_text(target, page)
    return target


def _mathml(text: str) -> str:
    """Markdown with its mathematics as MathML, which browsers draw without a script."""
    from docutils.utils.math.latex2mathml import tex2mathml

    def convert(match: re.Match[str]) -> str:
        block, inline = match.groups()
        try:
            drawn = tex2mathml((block or inline).strip(), as_block=bool(block))
        except Exception:  # what docutils cannot read stays as it was written
            return f"<code>{html_module.escape((block or inline).strip())}</code>"
        # On one line, and without what Markdown would take for its own.
        drawn = re.sub(r"\s*\n\s*", "", drawn)
        return re.sub(r"(?<=>)([^<]+)", lambda text: re.sub(r"[|*_`\\]", _entity, text.group()), drawn)

    parts = _CODE.split(text)
    return "".join(part if number % 2 else _MATHEMATICS.sub(convert, part) for number, part in enumerate(parts))


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match.group())};"
