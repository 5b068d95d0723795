"""The pages that help a reader: errors that exist, data under figures, how to cite."""

import ast
import re
import tomllib
from pathlib import Path

import chromium
import pdf
import provenance
import pytest
import yaml

from ridge_utils import results

ROOT = Path(__file__).parent.parent
GAP = "…"


def messages():
    """Every text in the code, what is filled in replaced by a gap."""
    for path in [*(ROOT / "ridge_utils").rglob("*.py"), ROOT / "book" / "build.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(v.value) if isinstance(v, ast.Constant) else GAP for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def symptoms():
    for line in (ROOT / "book" / "failures.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split("|")[1])


def test_every_symptom_is_an_error_of_the_code():
    every = [text.replace("`", "") for text in messages()]
    every += [text.replace(GAP, kind) for text in every for kind in ("parameter", "field")]  # errors.explain fills in
    for symptom in symptoms():
        parts = [part.strip(" :…") for part in symptom.split(GAP) if len(part.strip(" :…")) > 4]
        assert parts, symptom
        assert any(all(part in text for part in parts) for text in every), symptom


def test_a_figure_without_a_link_has_the_tables_of_the_figure_it_names():
    others = {"fig-a": "{download}`x <../results/reference/smollm2-ecqa/anatomy.csv>`"}
    assert provenance.tables_of(others["fig-a"], {}, "attention") == ["reference/smollm2-ecqa/anatomy"]
    assert provenance.tables_of("As {numref}`fig-a`.", others, "attention") == ["reference/smollm2-ecqa/anatomy"]
    assert provenance.tables_of("Measured here.", others, "attention") == ["attention"]
    assert provenance.tables_of("Measured here.", others, "verdicts") == []


def test_the_command_under_a_figure_names_notebook_and_profile():
    assert provenance.command("reference/smollm2-ecqa/anatomy").startswith("ridge run anatomy --profile smollm2-ecqa ")
    assert provenance.command("benchmarks") == provenance.command("differences/attention") == ""


def test_the_status_page_has_every_table_once():
    _, pages = provenance.status()
    listed = re.findall(r"\.\./results/([\w./-]+)\.csv", "".join(pages.values()))
    stored = [path.relative_to(results.FOLDER).with_suffix("").as_posix() for path in results.FOLDER.rglob("*.csv")]
    assert sorted(listed) == sorted(name for name in stored if not name.startswith(("differences/", "audit/")))


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (59, "59 s"), (3570, "1 h 00"), (61, "1 min"), (14500, "4 h 02")]
)
def test_durations(seconds, text):
    assert provenance.duration(seconds) == text


def test_the_citation_file_is_valid_and_of_this_version():
    content = yaml.load((ROOT / "CITATION.cff").read_text(encoding="utf-8"), yaml.BaseLoader)
    assert content["cff-version"] == "1.2.0"
    assert content["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for work in (content, *content["references"]):  # what schema 1.2.0 requires of a work and of a person
        assert {"title", "authors", "type"} <= set(work)
        assert all("name" in author or {"family-names", "given-names"} <= set(author) for author in work["authors"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", content["date-released"])


def test_the_links_of_the_pdf_stay_inside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "ROOT", tmp_path)
    page = tmp_path / "_build" / "singlehtml" / "book" / "intro.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        '<link href="_static/a.css"><a href="book/intro.html#term">x</a><a href="intro.html#t">y</a>'
        '<a class="d" href="_downloads/1/a.csv">z</a><a href="https://arxiv.org">w</a><a href="#document-cite">v</a>'
    )
    assert pdf.whole().read_text() == (
        '<link href="_static/a.css"><a href="#term">x</a><a href="#t">y</a>'
        '<a class="d">z</a><a href="https://arxiv.org">w</a><a href="#document-cite">v</a>'
    )


def test_without_a_browser_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(SystemExit, match="CHROMIUM=PATH"):
        chromium.find()
