"""All that is stored of every model, task and checkpoint, side by side: what the atlas draws and lists."""

from collections.abc import Mapping

import pandas as pd

from ridge_utils.audit.verdicts import CASE, Stored

#: What tells one checkpoint from another.
CHECKPOINT = [*CASE, "step"]
#: The lines, by the quantity and the variant that a table of the anatomy holds them under.
LINES = {
    "paper": ("predictive_information", ""),
    "null": ("null_information", ""),
    "plug_in": ("plug_in", ""),
    "unbiased": ("unbiased_information", ""),
    "spread": ("predicted_entropy", ""),
}
#: The statements of C1 that are listed, as the judge names them.
STATEMENTS = {
    "paper_fall": "fall of the plug-in I, N = 200",
    "bias_share": "share of it that is bias",
    "fall": "fall of I",
    "centred_fall": "fall of Mantel's r, centred",
    "probe_fall": "fall of what a probe reads",
}


def lines(stored: Mapping[str, Mapping[str, Stored]]) -> pd.DataFrame:
    """The lines of every checkpoint over depth, of ID and OOD examples together, training seeds averaged.

    Args:
        stored: tables by notebook and file, :func:`ridge_utils.audit.verdicts.stored`. Of two with the same model, task
            and source the first counts.

    Returns:
        :data:`CHECKPOINT`, ``layer``, ``depth`` (layer over blocks), and in nats :data:`LINES`: at 200 examples the
        paper's estimate, its null and the plug-in estimate of order 2; the unbiased one, of all examples; and the
        entropy of the states that their spread foretells. The state after the final norm is left out.
    """
    tables = []
    seen: set[tuple[str, ...]] = set()
    for table, _ in [*stored.get("anatomy", {}).values(), *stored.get("audit", {}).values()]:
        rows = table[(table["split"] == "all") & (table["site"] != "final_norm")]
        cases = set(rows[list(CASE)].itertuples(index=False, name=None))
        if not cases <= seen:
            seen |= cases
            tables.append(rows)
    table = pd.concat(tables, ignore_index=True)
    key = [*CHECKPOINT, "layer"]
    curves = {
        name: table[(table["quantity"] == quantity) & (table["variant"] == variant)].groupby(key)["value"].mean()
        for name, (quantity, variant) in LINES.items()
    }
    wide = pd.DataFrame(curves).reset_index()
    wide["depth"] = wide["layer"] / wide.groupby(CHECKPOINT)["layer"].transform("max")
    return wide


def layers(curves: pd.DataFrame) -> pd.DataFrame:
    """Where the paper's estimate and the spread are largest among the blocks, a row per checkpoint of :func:`lines`.

    Returns:
        :data:`CHECKPOINT`, ``blocks``, ``paper_layer``, ``spread_layer``, and ``spread_fall``, the relative fall of the
        foretold entropy to the last block, 0 where that has the largest.
    """
    rows = []
    for case, curve in curves[curves["layer"] > 0].groupby(CHECKPOINT, sort=False):
        by_layer = curve.set_index("layer")
        spread = by_layer["spread"]
        rows.append(
            dict(zip(CHECKPOINT, case, strict=True))
            | {
                "blocks": int(by_layer.index.max()),
                "paper_layer": int(by_layer["paper"].idxmax()),
                "spread_layer": int(spread.idxmax()),
                "spread_fall": 1 - spread.iloc[-1] / spread.max(),
            }
        )
    return pd.DataFrame(rows)


def falls(judged: pd.DataFrame) -> pd.DataFrame:
    """C1 at the last block, a row per checkpoint, from :func:`ridge_utils.audit.verdicts.judge`.

    Returns:
        :data:`CHECKPOINT`, ``verdict``, ``why``, ``n`` examples, ``seeds``, and of each of :data:`STATEMENTS` the
        estimate and the ends of its interval, as shares (``fall``, ``fall_low``, ``fall_high``).
    """
    rows = judged[(judged["claim"] == "C1") & (judged["part"] == "last block")]
    step = rows["when"].str.extract(r"step (\d+)", expand=False).fillna("0").astype(int)
    rows = rows.assign(step=step, n=rows["n"].groupby([*map(rows.get, CASE), step]).transform("max"))
    one = CHECKPOINT
    wide = rows.drop_duplicates(one)[[*one, "verdict", "why", "n", "seeds"]]
    for name, effect in STATEMENTS.items():
        columns = {"estimate": name, "low": f"{name}_low", "high": f"{name}_high"}
        wide = wide.merge(rows[rows["effect"] == effect][[*one, *columns]].rename(columns=columns), on=one, how="left")
    return wide


def foretold(curves: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """What was predicted of the untouched models, beside what was measured of them.

    Args:
        curves: :func:`lines`.
        predicted: the table of :func:`ridge_utils.audit.predictions.run`.

    Returns:
        A row per prediction, with model, task and source; ``blocks``; ``foretold`` and ``measured``, the layers, the
        latter NA where nothing is measured yet; ``place_right``, at most one block apart; ``fall_foretold``,
        ``fall_measured`` and ``fall_right``. Predictions for other forms of an answer are left out: their states are
        the same.
    """
    measured = layers(curves[curves["step"] == 0])[[*CASE, "paper_layer"]]
    rows = predicted[predicted["options"] == "none"].merge(measured, on=list(CASE), how="left")
    rows = rows.rename(columns={"ridge_layer_to_last": "foretold", "paper_layer": "measured", "falls": "fall_foretold"})
    there = rows["measured"].notna()
    rows["fall_measured"] = (rows["measured"] < rows["blocks"]).where(there)
    rows["place_right"] = ((rows["measured"] - rows["foretold"]).abs() <= 1).where(there)
    rows["fall_right"] = (rows["fall_measured"] == rows["fall_foretold"]).where(there)
    kept = [*CASE, "blocks", "foretold", "measured", "place_right", "fall_foretold", "fall_measured", "fall_right"]
    return rows[kept].astype({"measured": "Int64"})
