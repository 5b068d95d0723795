"""The house as it is drawn: every module has a room and a page, and no import points back."""

import graphlib
from pathlib import Path

import architecture
import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_every_module_has_a_room_and_imports_from_no_later_one():
    assert architecture.problems() == []


def test_there_is_no_circle():
    graphlib.TopologicalSorter(architecture.imports()).prepare()  # a CycleError names the modules


def test_what_has_no_room_and_what_points_back_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(architecture, "PACKAGE", tmp_path / "ridge_utils")
    (tmp_path / "ridge_utils").mkdir()
    (tmp_path / "ridge_utils" / "models.py").write_text("from ridge_utils import figures")
    (tmp_path / "ridge_utils" / "figures.py").write_text("")
    (tmp_path / "ridge_utils" / "new_probe.py").write_text("from ridge_utils.models import load")
    found = " ".join(architecture.problems())
    assert "ridge_utils.models (Model) imports figures" in found
    assert "ridge_utils.new_probe stands in no room" in found


def test_every_page_of_the_api_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    (api,) = [c for part in toc["parts"] for c in part["chapters"] if c["file"] == "book/api"]
    listed = {"api.md"} | {f"{section['file'].removeprefix('book/')}.md" for section in api["sections"]}
    pages = architecture.pages()
    assert listed == set(pages)
    text = "".join(pages.values())
    for module in architecture.modules():
        assert f".. automodule:: ridge_utils.{module}\n" in text, module
