"""The benchmark page shows what was measured, and the ratios are those of the times."""

import numpy as np
import pytest

from ridge_utils import benchmarks


@pytest.fixture(scope="module")
def stored():
    return benchmarks.stored()


def test_every_ratio_is_that_of_its_times(stored):
    rows, _ = stored
    np.testing.assert_allclose(rows["ratio"], rows["seconds"] / rows["reference_seconds"], rtol=1e-6)
    assert (rows["seconds"] > 0).all()
    assert f"{len(rows)} measurements" in benchmarks.check(rows)


def test_a_ratio_that_is_not_that_of_its_times_is_found(stored):
    rows = stored[0].copy()
    rows.loc[2, "ratio"] *= 1.01
    with pytest.raises(AssertionError, match="but its times give"):
        benchmarks.check(rows)


def test_the_table_and_the_figures_have_every_measurement(stored):
    rows, origin = stored
    shown = benchmarks.table(rows).to_html()
    assert shown.count("<tr>") == len(rows) + 1
    sizes = benchmarks.size_figure(rows)
    profile = rows[rows["what"].str.startswith("profile of 31") & ~rows["reference"].str.startswith("the forward")]
    assert sizes.axes[0].get_lines()[0].get_xdata().tolist() == sorted(profile["n"].unique())
    widths = benchmarks.width_figure(rows).axes[0].get_lines()[0].get_xdata().tolist()
    assert widths == sorted(rows.loc[rows["what"] == "profile of 8 layers", "d"])
    assert len(widths) >= 4
    assert origin["date"] in benchmarks.machine(origin)


def test_an_accelerator_is_named(stored):
    origin = stored[1]
    on = origin | {"machine": origin["machine"] | {"accelerator": "NVIDIA H100"}}
    assert "with NVIDIA H100" in benchmarks.machine(on)
