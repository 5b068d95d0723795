"""The page on other measures, on planted states where it is known which layer tells most."""

import math

import pytest
import torch

from ridge_utils import inference, results
from ridge_utils.audit import decodability, estimators, probes
from ridge_utils.errors import InputError
from ridge_utils.representations import Representations
from tests.tables import rows as one

pytestmark = pytest.mark.slow
CONTEXT = {"model": "m", "task": "t", "source": "own", "step": 0, "train_seed": None}


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pools(labels, clarity=(0.0, 1.0, 3.0, 0.5), width=12):
    """States that tell the label as clearly as each layer is given, layer 2 of 3 best; 0 is one state for all."""
    n = len(labels)
    targets = normal(int(labels.max()) + 1, width, seed=0)[labels]
    layers = [c * targets + normal(n, width, seed=i + 1) if c else torch.ones(n, width) for i, c in enumerate(clarity)]
    hidden = torch.stack(layers)
    both = Representations(hidden, hidden[-1] * 2, targets, labels)
    return {"id": both.select(range(n // 2)), "ood": both.select(range(n // 2, n)), "all": both}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Planted states need no long training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decodability, "CRITIC_STEPS", 40)
        patch.setattr(probes, "_DECAYS", [10.0])
        patch.setattr(probes, "_INVERSE_PENALTIES", [0.1])
        yield


@pytest.fixture(scope="module")
def closed(quick):
    labels = torch.cat([torch.arange(76) % 4, torch.tensor([4, 5, 5, 6])])
    return decodability.measure(pools(labels), CONTEXT, halves=20, jobs=1)


@pytest.fixture(scope="module")
def opened(quick):
    return decodability.measure(pools(torch.arange(60)), CONTEXT, halves=20, jobs=1)


def effect(table, quantity, variant):
    (row,) = inference.effects(table, quantity).query("variant == @variant").to_dict("records")
    return row


def test_probes_read_most_at_the_ridge_and_fall_from_it(closed):
    for variant in ("", "mlp"):
        rows = one(closed, "v_information", split="all", variant=variant)
        assert rows["site"].tolist() == ["embedding", "block", "block", "block", "final_norm"]
        values = rows["value"].tolist()
        assert values[2] == max(values)
        assert abs(values[0]) < 0.05, "one state for all tells nothing"
        assert values[2] <= one(closed, "null_entropy", variant=variant)["value"].item()
        fall = effect(closed, "v_information_fall", variant)
        assert fall["estimate"] == pytest.approx(values[2] - values[3])
        assert fall["low"] > 0
        assert fall["p"] < 0.01
        assert fall["effect_size"] > 0


def test_rare_targets_are_left_out_of_probes_and_neighbours_alrows(closed):
    counts = closed[closed["split"] == "all"].groupby("quantity")["n"].unique()
    assert counts["v_information"].tolist() == counts["ksg_information"].tolist() == [76]
    assert counts["info_nce"].tolist() == counts["cka"].tolist() == [80]


def test_the_splits_are_means_over_their_examples(closed):
    for quantity in ("v_information", "probe_accuracy"):
        rows = {split: one(closed, quantity, split=split, variant="", layer=2) for split in ("id", "ood", "all")}
        assert [rows[split]["n"].item() for split in ("id", "ood")] == [40, 36]
        mean = sum(rows[split]["value"].item() * rows[split]["n"].item() for split in ("id", "ood")) / 76
        assert rows["all"]["value"].item() == pytest.approx(mean)


def test_every_measure_falls_where_information_does(closed):
    names = {"linear", "mlp", "info_nce", "ksg", "distance", "alignment", "matrix"}
    assert set(one(closed, "peak_fall")["variant"]) == names
    for name in names:
        assert effect(closed, "peak_fall", name)["low"] > 0


def test_intervals_lie_around_their_values(closed):
    keys = ["quantity", "variant", "layer", "site"]
    rows = closed[
        (closed["split"] == "all") & closed["quantity"].isin(m.quantity for m in decodability.MEASURES.values())
    ]
    value = rows.set_index(keys)["value"]
    for sign, suffix in ((-1, "_low"), (1, "_high")):
        edge = closed[closed["quantity"].str.endswith(suffix)].assign(
            quantity=closed["quantity"].str.removesuffix(suffix)
        )
        edge = edge.set_index(keys)["value"].reindex(value.index)
        assert edge.notna().all()
        assert (sign * (edge - value) >= 0).all()


def test_an_open_vocabulary_has_the_probe_of_embeddings_and_none_of_classes(opened):
    assert set(one(opened, "v_information")["variant"]) == {"embedding"}
    assert one(opened, "null_entropy")["value"].item() == pytest.approx(math.log(12))
    values = one(opened, "v_information", split="all")["value"].tolist()
    assert values[2] == max(values) > 0.5
    assert effect(opened, "v_information_fall", "embedding")["low"] > 0


def test_a_ridge_at_the_last_block_cannot_fall_and_flat_profiles_have_numbers():
    rising = decodability.measure(pools(torch.arange(40) % 2, (0, 0, 0, 3.0)), CONTEXT, halves=20, jobs=1)
    assert effect(rising, "v_information_fall", "")["estimate"] == 0
    assert effect(rising, "v_information_fall", "")["p"] == 1
    flat = decodability.measure(pools(torch.arange(40) % 2, (0, 0, 0, 0)), CONTEXT, halves=20, jobs=1)
    assert flat["value"].notna().all()


def test_a_task_with_a_single_target_has_no_probes():
    alone = decodability.measure(pools(torch.zeros(40, dtype=torch.int64)), CONTEXT, halves=20, jobs=1)
    assert one(alone, "v_information").empty
    assert alone["value"].notna().all()
    assert one(alone, "predictive_information")["value"].abs().max() < 1e-9


def test_spacing_keeps_the_ridge_and_the_ends(closed):
    wide = decodability.measure(pools(torch.arange(40) % 2), CONTEXT, spacing=9, halves=20, jobs=1)
    assert one(wide, "v_information", split="all", variant="")["layer"].tolist() == [0, 2, 3, 3]
    assert one(wide, "predictive_information")["layer"].tolist() == [0, 1, 2, 3, 3]
    with pytest.raises(InputError, match="spacing"):
        decodability.measure(pools(torch.arange(40) % 2), CONTEXT, spacing=0)


def test_checkpoints_are_spread_with_both_ends():
    assert decodability.spread([0, 25, 50, 100], 3) == [0, 50, 100]
    assert decodability.spread([0, 25, 50, 100], 2) == [0, 100]
    assert decodability.spread([0, 2], 3) == decodability.spread([0, 2], 0) == [0, 2]


def test_validation_has_a_row_for_each_measure_that_fits(monkeypatch):
    known = [estimators.gaussian(60, 2, 1.0), estimators.channel(60, 2, 0.1), estimators.channel(60, 2, 0.5)]
    monkeypatch.setattr(decodability, "known_distributions", lambda n, seed: known)
    table = decodability.validation(60, jobs=1)
    assert table.groupby("family", sort=False)["measure"].nunique().tolist() == [6, 7]
    assert set(table["measure"]) == set(decodability.MEASURES)
    far = table[(table["measure"] == "linear") & (table["truth"] > 0.1)]
    assert far["estimate"].item() == pytest.approx(far["truth"].item(), abs=0.25)


def test_the_table_is_one_of_measurements(closed):
    assert list(closed.columns) == list(results.COLUMNS)
    assert not closed.duplicated([*results.KEY]).any()
    assert closed["value"].notna().all()
