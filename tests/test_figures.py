"""Each kind of figure on a small table: what is drawn is what the table holds."""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ridge_utils import figures, formatting, statistics

mpl.use("Agg")


@pytest.fixture(autouse=True)
def close():
    figures.style()
    yield
    plt.close("all")


@pytest.fixture
def table():
    """Two checkpoints of a model of 6 blocks on two splits, two sampling seeds, with a null below."""
    rows = []
    for split, step, seed, layer in itertools.product(("id", "ood"), (0, 5), (0, 1), range(8)):
        value = 0.1 * min(layer, 6) * (1 + step) + 0.01 * seed
        site = "embedding" if layer == 0 else "final_norm" if layer == 7 else "block"
        place = {"split": split, "step": step, "sample_seed": seed, "layer": min(layer, 6), "site": site}
        rows.append({**place, "quantity": "predictive_information", "value": value})
        rows.append({**place, "quantity": "null_information", "value": value / 2})
    return pd.DataFrame(rows)


def lines(ax, style):
    return [line for line in ax.get_lines() if line.get_linestyle() == style and len(line.get_xdata()) > 1]


def test_profiles_draw_one_curve_per_checkpoint_and_its_null(table):
    figure = figures.profiles(table, null="null_information")
    left, right = figure.axes
    for ax in (left, right):
        assert len(lines(ax, "-")) == len(lines(ax, ":")) == 2
    untouched, null = lines(left, "-")[0], lines(left, ":")[0]
    np.testing.assert_allclose(untouched.get_ydata(), [0.1 * layer + 0.005 for layer in range(7)])
    np.testing.assert_allclose(null.get_ydata(), untouched.get_ydata() / 2)


def test_a_profile_has_its_band_and_the_state_after_the_final_norm_apart(table):
    figure = figures.profiles(table, panels="split")
    rows = table[(table["split"] == "id") & (table["step"] == 0) & (table["quantity"] == "predictive_information")]
    half_width = statistics.band(rows, ["layer", "site"])["half_width"].iloc[0]
    first = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert first.min() == pytest.approx(0.005 - half_width)
    diamonds = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_marker() == "D"]
    assert diamonds == [7, 7]


def test_effects_are_points_with_their_intervals():
    table = pd.DataFrame(
        {"name": ["x", "y", "x", "y"], "group": ["a", "a", "b", "b"], "estimate": [0.1, -0.2, 0.3, np.nan]}
    ).assign(low=lambda t: t["estimate"] - 0.1, high=lambda t: t["estimate"] + 0.2, panel="one")
    ax = figures.effects(table, "name", groups="group", panels="panel", label="nats").axes[0]
    points = np.concatenate([line.get_xdata() for line in ax.get_lines() if line.get_marker() == "o"])
    np.testing.assert_allclose(points, table["estimate"])
    np.testing.assert_allclose(ax.collections[0].get_segments()[0][:, 0], [0.0, 0.3])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y"]


def test_a_heat_map_shows_means_and_leaves_what_is_missing_empty():
    table = pd.DataFrame({"layer": [0, 1, 1, 2], "step": [0, 0, 0, 5], "value": [1.0, 2.0, 4.0, 5.0]})
    figure = figures.heat_map(table, "layer", "step", "value", label="nats")
    image = figure.axes[0].get_images()[0]
    np.testing.assert_allclose(image.get_array().filled(np.nan), [[1, 3, np.nan], [np.nan, np.nan, 5]])


def test_bars_are_as_long_as_their_values_within_each_group():
    table = pd.DataFrame({"name": ["x", "y"] * 2, "split": ["id", "id", "ood", "ood"], "value": [1.0, 2.0, 3.0, 4.0]})
    table = table.assign(low=0.5, high=5.0, panel="one")
    ax = figures.bars(table, "name", "value", groups="split", panels="panel", label="nats").axes[0]
    assert [bar.get_width() for bar in ax.patches] == [1, 2, 3, 4]


def test_a_table_keeps_its_id_while_its_content_stays():
    frame = pd.DataFrame({"layer": [1, 2]})
    first, again = (formatting.styled(frame, "caption").to_html() for _ in range(2))
    assert first == again
    assert formatting.styled(frame + 1, "caption").to_html().split("_row")[0] != first.split("_row")[0]
