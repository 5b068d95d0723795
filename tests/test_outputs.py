"""What the book shows: sealed, and compared number by number, on the outputs of the committed notebooks themselves."""

import copy
import random
import re

import nbformat
import pytest

from ridge_utils import notebooks, outputs
from ridge_utils.errors import StorageError

PATHS = sorted(notebooks.NOTEBOOKS.glob("*.ipynb"))
PAGES = {path: nbformat.read(path, as_version=4) for path in PATHS}
#: Cells of the book that show something other than images.
SHOWING = [
    cell
    for page in PAGES.values()
    for cell in page.cells
    if cell.cell_type == "code" and not notebooks.has_tag(cell, notebooks.OWN_RUN) and cell.outputs
]


def texts(cell):
    """Where a cell's outputs hold text: the mapping, its key, and whether it is a glued value."""
    for output in cell.outputs:
        if "text" in output:
            yield output, "text", False
        for kind in output.get("data", {}):
            if not kind.startswith("image/"):
                yield output["data"], kind, kind == outputs.GLUED


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_is_as_refresh_wrote_it(path):
    outputs.check_seal(path)


def test_what_is_as_it_was_stored_is_no_difference():
    assert not [cell.id for cell in SHOWING if outputs.difference(cell.outputs, copy.deepcopy(cell.outputs))]


def test_any_digit_that_is_changed_breaks_the_seal_or_differs():
    """Thousands of digits of stored tables, facts and glued numbers, each changed as one would by hand."""
    rng, changed = random.Random(0), 0
    for _ in range(3000):
        cell = copy.deepcopy(rng.choice(SHOWING))
        holder, kind, glued = rng.choice(list(texts(cell)))
        numbers = [n for n in re.finditer(r"(?<![\w.#-])[-+]?\d+(\.\d+)?(?![\w.])", holder[kind])]
        if not numbers:
            continue
        number = rng.choice(numbers)
        place = rng.choice([i for i in range(*number.span()) if holder[kind][i].isdigit()])
        old, new = holder[kind][place], rng.choice("0123456789")
        stored = copy.deepcopy(cell.outputs)
        holder[kind] = holder[kind][:place] + new + holder[kind][place + 1 :]
        last = "." in number.group() and place == number.end() - 1 and abs(int(old) - int(new)) < 2
        late = glued and sum(digit.isdigit() for digit in holder[kind][number.start() : place].lstrip("-+0.")) > 4
        if old != new and not last and not late:
            wrong = outputs.difference(stored, cell.outputs)
            assert wrong, (cell.id, number.group(), place, new)
            changed += 1
    assert changed > 1500


def test_every_digit_of_every_output_is_sealed(tmp_path):
    rng = random.Random(0)
    for number in range(150):
        path = rng.choice(PATHS)
        page = copy.deepcopy(PAGES[path])
        cell = rng.choice([cell for cell in page.cells if cell.cell_type == "code" and cell.outputs])
        match number % 5:
            case 0:
                del cell.outputs[rng.randrange(len(cell.outputs))]
            case 1:
                cell.outputs.append(nbformat.v4.new_output("stream", text="1\n"))
            case 2:
                cell.source += " "
            case _:
                output = rng.choice(cell.outputs)
                holder = output if "text" in output else output["data"]
                kind = "text" if "text" in output else rng.choice(list(output["data"]))
                place = rng.randrange(len(holder[kind]))
                holder[kind] = holder[kind][:place] + "\u2603" + holder[kind][place + 1 :]
        nbformat.write(page, tmp_path / path.name)
        with pytest.raises(StorageError, match=f"{path.name}: .* of the cell {cell.id} "):
            outputs.check_seal(tmp_path / path.name)
    for content in ("", "{}", "[]", "null", '{"cells": 3}', "[" * 5000):
        (tmp_path / "x.ipynb").write_text(content)
        with pytest.raises(StorageError, match=r"x\.ipynb cannot be read"):
            outputs.check_seal(tmp_path / "x.ipynb")


def test_an_output_that_is_missing_or_more_differs():
    for cell in SHOWING:
        assert outputs.difference(cell.outputs, cell.outputs[:-1]) or cell.outputs[-1].get("name") == "stdout"
        more = [*cell.outputs, nbformat.v4.new_output("display_data", {"text/plain": "1"})]
        assert outputs.difference(cell.outputs, more)
        assert outputs.difference(more, cell.outputs)


@pytest.mark.parametrize(
    ("stored", "fresh", "tolerance", "alike"),
    [
        ("mean 0.241", "mean 0.242", 0, True),
        ("mean 0.241", "mean 0.243", 0, False),
        ("mean 0.241", "mean 0.243", 0.01, True),
        ("mean 0.24", "mean 0.241", 0, True),
        ("at 27 of 30", "at 28 of 30", 0.01, False),
        ("1e-12", "2e-12", 0, True),
        ("1e-12", "1e-10", 0, False),
        ("+0.001", "-0.001", 0, False),
        ("+0.001", "0.000", 0, True),
        ("p < 0.001", "p 0.001", 0, False),
        ("nan", "0.1", 1, False),
        ("1 2", "1", 0, False),
    ],
)
def test_numbers_move_by_one_unit_of_their_last_digit(stored, fresh, tolerance, alike):
    shown = [[nbformat.v4.new_output("stream", text=text)] for text in (stored, fresh)]
    assert (not outputs.difference(*shown, tolerance)) == alike


def test_glued_numbers_move_by_a_millionth_and_tables_are_not_told_apart_by_their_ids():
    def glued(value):
        data = {outputs.GLUED: repr(value)}
        return [nbformat.v4.new_output("display_data", data, metadata={"scrapbook": {"name": "gap"}})]

    assert not outputs.difference(glued(0.1234567891), glued(0.1234567892))
    assert outputs.difference(glued(0.5), glued(0.50001)) == "glued gap\n- 0.50001\n+ 0.5"
    assert outputs.difference(glued(3), glued(4))
    html = [[nbformat.v4.new_output("display_data", {"text/html": f"T_{i}a2b3c4d 0.5"})] for i in "12"]
    assert not outputs.difference(*html)
