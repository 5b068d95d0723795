"""What the first page, the README and the referees' questions rest on: numbers, facts and one figure, from results/.

The sentences of these pages are written by hand. A number in them is a substitution that :func:`numbers` fills; what
they say without a number is a named fact, and the book is not built while one of :func:`facts` does not hold.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from ridge_utils import formatting, inference, results, statistics
from ridge_utils.audit import atlas, controls, verdicts

#: The two panels; the first page puts them side by side, or below each other on a phone.
IMAGES = [Path(__file__).parent / "images" / f"answer-{panel}.png" for panel in ("null", "tasks")]

#: The reference runs whose tables the figure is drawn from.
ANATOMY = "smollm2-synthetic/anatomy"
PROFILES = {
    "synthetic arithmetic, step 20": ("smollm2-synthetic/predictive_information", 20),
    "CLUTRR, step 20": ("smollm2-clutrr/predictive_information", 20),
    "ECQA, step 15": ("smollm2-ecqa/predictive_information", 15),
}
TASKS = ("synthetic", "clutrr", "ecqa")


@cache
def reference(name: str) -> pd.DataFrame:
    """The table of a reference run, ``profile/notebook``."""
    return results.read(results.FOLDER / "reference" / f"{name}.csv")[0]


def untouched() -> pd.DataFrame:
    """Profiles of the untouched SmolLM2-135M-Instruct on synthetic arithmetic: nats, by layer and quantity.

    ``predictive_information`` and ``null_information`` are the paper's at 200 examples, means over samples.
    """
    table = reference(ANATOMY)
    body = table[(table["step"] == 0) & (table["split"] == "all") & (table["site"] != "final_norm")]
    return body[body["variant"] == ""].pivot_table(index="layer", columns="quantity", values="value")


def null_share() -> float:
    """How much of the fall to the last block shuffled targets give, at 200 examples, untouched."""
    profiles = untouched()[["predictive_information", "null_information"]]
    fall = profiles.loc[profiles["predictive_information"].idxmax()] - profiles.iloc[-1]
    return fall["null_information"] / fall["predictive_information"]


@cache
def ridges() -> pd.DataFrame:
    """:func:`ridge_utils.statistics.ridge_summary` of every reference run of the pretrained model, by ``task``."""
    parts = [
        statistics.ridge_summary(reference(f"smollm2-{task}/predictive_information")).assign(task=task)
        for task in TASKS
    ]
    frame = pd.concat(parts, ignore_index=True)
    return frame[frame["split"] == "all"].set_index(["task", "step"])


def _falling_measures(step: int) -> set[str]:
    """The other measures that fall from their own largest layer to the last block beyond the interval."""
    effects = inference.effects(reference("smollm2-synthetic/decodability"), "peak_fall")
    effects = effects[(effects["step"] == step) & (effects["variant"] != "matrix")]
    return set(effects.loc[effects["low"] > 0, "variant"])


def _controls(task: str, step: int) -> pd.DataFrame:
    """Of each other setting of the estimator, on ID examples: whether it has a ridge, and whether above its null."""
    table = reference(f"smollm2-{task}/estimator_audit")
    marks = controls.ridges(table[table["step"] == step])
    return marks[marks["split"] == "id"].set_index("variant")[["has_ridge", "above_null"]]


#: Statements of C1, as the judge names them.
CENTRED, PROBE = "fall of Mantel's r, centred", "fall of what a probe reads"


def _exit_gain(task: str, step: int) -> pd.Series:
    """Accuracy of the OOD exit at the ridge layer less that at the last block, training seeds together."""
    effects = inference.across_seeds(inference.effects(reference(f"smollm2-{task}/anatomy"), "exit_gain"))
    return effects[(effects["split"] == "ood") & (effects["step"] == step)].iloc[0]


def _depths_with_ridge() -> set[int]:
    """Numbers of blocks at which the model, cut and fine-tuned on synthetic arithmetic, has a ridge."""
    depths = set()
    for _, table in reference("smollm2-synthetic/truncation").groupby("model"):
        summary = statistics.ridge_summary(table)
        summary = summary[(summary["split"] == "all") & (summary["step"] == summary["step"].max())]
        depths |= set(summary.loc[summary["has_ridge"], "blocks"])
    return depths


def _from_scratch() -> pd.DataFrame:
    """What the protocol reads of each model from scratch at the last block: its state by model (rows) and step."""
    rows = verdicts.cases(_verdicts())
    rows = rows[(rows["claim"] == "C1") & (rows["part"] == "last block") & rows["model"].str.startswith("random:")]
    step = rows["when"].str.extract(r"(\d+)", expand=False).fillna("0").astype(int)
    return rows.assign(step=step).pivot_table(index="model", columns="step", values="state", aggfunc="first")


def _transfers() -> bool:
    """Whether any model from scratch ends with an OOD accuracy above that of the commonest answer."""
    ends = []
    for name, (table, _) in results.references("anatomy").items():
        if name.startswith("scratch"):
            rows = table[(table["split"] == "ood") & (table["step"] == table["step"].max())]
            exits = rows[(rows["quantity"] == "early_exit_accuracy") & (rows["layer"] == rows["layer"].max())]
            commonest = rows.loc[rows["quantity"] == "majority_accuracy", "value"].mean()
            ends.append(exits["value"].max() > commonest)
    return any(ends)


def _cut_z() -> float:
    """Standard errors by which unbiased information at the ridge layer lies above 0, the most of all cut models."""
    table = reference("smollm2-synthetic/truncation")
    return table.loc[table["quantity"] == "ridge_z", "value"].max()


def _attention(effect: str) -> pd.DataFrame:
    """An effect of C9 in the fine-tuned model: a row per task and split."""
    rows = _verdicts()
    rows = rows[(rows["claim"] == "C9") & (rows["effect"] == effect) & (rows["model"] == "smollm2-135m")]
    return rows[rows["when"] != "untouched"]


def _scaling() -> pd.DataFrame:
    """What the protocol reads of C5, fine-tuned on synthetic arithmetic, by statement."""
    rows = _verdicts()
    rows = rows[(rows["claim"] == "C5") & (rows["model"] == "smollm2-135m")]
    return rows[rows["task"] == "synthetic_arithmetic"].set_index("effect")


@cache
def _verdicts() -> pd.DataFrame:
    return verdicts.judge(verdicts.stored(audits=False))


@cache
def _judged() -> pd.DataFrame:
    """What the protocol reads of the ridge at the last block after 40 steps on synthetic arithmetic, by statement."""
    rows = _verdicts()
    chosen = (rows["claim"] == "C1") & (rows["part"] == "last block") & rows["when"].str.startswith("step 40")
    return rows[chosen & (rows["task"] == "synthetic_arithmetic") & (rows["model"] == "smollm2-135m")].set_index(
        "effect"
    )


@cache
def _foretold() -> pd.DataFrame:
    """What was predicted of models that were then measured, untouched, beside what was measured."""
    predicted = results.read(results.FOLDER / "predictions.csv")[0]
    return atlas.foretold(atlas.lines(verdicts.stored(audits=False)), predicted).dropna(subset="measured")


def _of_spread() -> pd.DataFrame:
    """What the protocol reads of the pretrained models' artefacts of spread at the last block: a row per statement."""
    rows = _verdicts()
    rows = rows[(rows["claim"] == "C1") & (rows["part"] == "last block") & ~rows["model"].str.startswith("random:")]
    rows = rows[(rows["verdict"] == "artefact") & (rows["why"] == "of spread")]
    return rows.set_index(["effect", "model", "task"]).sort_index()


@cache
def _falls() -> pd.DataFrame:
    """C1 at the last block, a row per checkpoint of the pretrained models."""
    falls = atlas.falls(_verdicts())
    return falls[~falls["model"].str.startswith("random:")]


def _certain() -> pd.DataFrame:
    """The checkpoints of :func:`_falls` at which the unbiased estimate surely falls by a tenth."""
    return _falls()[_falls()["fall_low"] > 0.1]


def _tuned_ecqa() -> pd.DataFrame:
    """Of these, Gemma fine-tuned on ECQA, step by step."""
    rows = _certain()
    rows = rows[(rows["model"] == "gemma3-270m") & (rows["task"] == "ecqa") & (rows["step"] > 0)]
    return rows.sort_values("step")


def _exits() -> set[str]:
    """What the protocol reads, of the pretrained models, of the OOD exit at the ridge layer less that at the end."""
    rows = _verdicts()
    rows = rows[(rows["claim"] == "C2") & ~rows["model"].str.startswith("random:")]
    return set(rows.loc[rows["effect"] == "exit of the ridge layer over the last", "state"])


def _deep() -> pd.Series:
    """A ridge as deep as the paper's: Gemma after 20 steps of fine-tuning on synthetic arithmetic."""
    falls = _falls().set_index(["model", "task", "step"])
    return falls.loc[("gemma3-270m", "synthetic_arithmetic", 20)]


def _learnt(quantity: str) -> pd.Series:
    """:func:`_by_seed` of Gemma, the estimates alone, the smallest first."""
    return _by_seed(quantity, "gemma3-270m-synthetic/anatomy")["estimate"].sort_values()


def _solved(run: str, step: int, share: float = 0.5) -> set[float]:
    """The training seeds under which more than a share of the ID examples is right at the end."""
    table = reference(run)
    rows = table[(table["quantity"] == "early_exit_accuracy") & (table["split"] == "id") & (table["step"] == step)]
    ends = rows[rows["layer"] == rows["layer"].max()].set_index("train_seed")["value"]
    return set(ends[ends > share].index)


def _letters() -> pd.DataFrame:
    """What the protocol reads of ECQA's letters at the last block after 30 steps, by statement."""
    rows = _verdicts()
    chosen = (rows["claim"] == "C1") & (rows["part"] == "last block") & rows["when"].str.startswith("step 30")
    return rows[chosen & (rows["task"] == "ecqa:letter")].set_index("effect")


def _overfitted(quantity: str) -> pd.Series:
    """An effect of C8 or beside it, past the lowest loss on CLUTRR, in per cent per doubling of the steps."""
    effects = inference.effects(reference("smollm2-clutrr/overfitting"), quantity)
    return 100 * effects[["estimate", "low", "high"]].iloc[0]


def _knows_letters() -> bool:
    """Whether the model fine-tuned for 30 steps answers ECQA with letters better than by the commonest one (OOD)."""
    table = reference("smollm2-ecqa-letters/anatomy")
    rows = table[(table["split"] == "ood") & (table["step"] == 30)]
    exits = rows[(rows["quantity"] == "early_exit_accuracy") & (rows["layer"] == rows["layer"].max())]
    return bool(exits["value"].max() > rows.loc[rows["quantity"] == "majority_accuracy", "value"].mean())


def _by_seed(quantity: str, run: str = ANATOMY) -> pd.DataFrame:
    """An effect after 40 steps at the last block with its interval, by the training seeds that it is measured under."""
    effects = inference.effects(reference(run), quantity)
    chosen = (effects["split"] == "all") & (effects["step"] == 40) & (effects["variant"] == "last_block")
    return effects[chosen].set_index("train_seed")[["estimate", "low", "high"]]


def _percent(statement: str) -> tuple[str, str]:
    row = 100 * _judged().loc[statement, ["estimate", "low", "high"]].astype(float)
    return f"{row['estimate']:.0f} %", f"{row['low']:.0f} to {row['high']:.0f} %"


def _interval(effect: pd.Series, digits: int, sign: int = 1) -> str:
    low, high = sorted((sign * effect["low"], sign * effect["high"]))
    return f"{low:.{digits}f} to {high:.{digits}f}"


def numbers() -> dict[str, str]:
    """The numbers in the sentences, as they are printed, by the name of their substitution."""
    ridge = ridges()
    before, early = _controls("synthetic", 0), _controls("synthetic", 20)
    attention = _attention("fall of attention to the signal")
    gain = 100 * _scaling().loc["accuracy gained by scales, OOD", ["estimate", "low", "high"]].astype(float)
    on_ecqa = attention["task"] == "ecqa"
    exits = {"untouched": 100 * _exit_gain("synthetic", 0), "ecqa": 100 * _exit_gain("ecqa", 30)}
    centred, probe = map(_percent, (CENTRED, PROBE))
    bias = 100 * _by_seed("bias_share")
    unbiased = 100 * _by_seed("information_fall")["estimate"]
    letters = 100 * _letters()[["estimate", "low", "high"]].astype(float)
    made, by_bias = letters.loc["fall of the plug-in I, N = 200"], letters.loc["share of it that is bias"]
    foretold, spread, deep = _foretold(), _of_spread(), 100 * _deep()[["fall", "fall_low", "fall_high"]]
    return {
        "spread_lowest": f"{100 * spread.loc['fall of I', 'estimate'].min():.0f} %",
        "spread_centred": f"{100 * spread.loc[CENTRED, 'high'].max():.0f} %",
        "fall_least": f"{100 * _certain()['fall'].min():.0f} %",
        "probe_most": f"{100 * _certain()['probe_fall'].max():.0f} %",
        "probe_most_high": f"{100 * _certain()['probe_fall_high'].max():.0f} %",
        "tuned_ecqa": formatting.listed(f"{100 * fall:.0f}" for fall in _tuned_ecqa()["fall"]) + " %",
        "tuned_ecqa_probe": formatting.listed(f"{100 * fall:.0f}" for fall in _tuned_ecqa()["probe_fall"]) + " %",
        "deepest": f"{deep['fall']:.0f} %",
        "deepest_interval": f"{deep['fall_low']:.0f} to {deep['fall_high']:.0f} %",
        "deep_reads": formatting.listed(f"{-100 * fall:.0f}" for fall in _learnt("probe_fall")[::-1]) + " %",
        "foretold": str(len(foretold)),
        "foretold_right": str(int(foretold["place_right"].sum())),
        "foretold_models": str(foretold["model"].nunique()),
        "letter_fall": f"{made['estimate']:.0f} %",
        "letter_bias": f"{by_bias['estimate']:.0f} %",
        "letter_bias_interval": f"95 % interval {by_bias['low']:.0f} to {by_bias['high']:.0f} %",
        "bias": f"{bias['estimate'].min():.0f} to {bias['estimate'].max():.0f} %",
        "bias_intervals": " and ".join(f"{row.low:.0f} to {row.high:.0f} %" for row in bias.itertuples()),
        "centred": centred[0],
        "centred_interval": centred[1],
        "probe": probe[0],
        "probe_interval": probe[1],
        "unbiased_falls": f"{unbiased.min():.0f} to {unbiased.max():.0f} %",
        "controls": str(len(before)),
        "controls_with_ridge": str(before["has_ridge"].sum()),
        "controls_above_null": str(early["above_null"].sum()),
        "attention_ecqa": f"{attention.loc[on_ecqa, 'estimate'].mean():.2f}",
        "attention_low": f"{-attention.loc[~on_ecqa, 'estimate'].max():.2f}",
        "attention_high": f"{-attention.loc[~on_ecqa, 'estimate'].min():.2f}",
        "overfitted": f"{_overfitted('last_block_rise')['estimate']:.0f} %",
        "overfitted_probe": f"{_overfitted('last_block_probe_rise')['high']:.0f} %",
        "scaling_gain": f"{gain['estimate']:.0f}",
        "scaling_gain_interval": _interval(gain, 0),
        **{f"exit_{name}": f"{-gain['estimate']:.0f}" for name, gain in exits.items()},
        **{f"exit_{name}_interval": _interval(gain, 0, -1) for name, gain in exits.items()},
        "null_share": f"{null_share():.0%}".replace("%", " %"),
        "untouched_high": f"{untouched()['unbiased_information_high'].max():.4f}",
        "states": str(len(ridge)),
        "states_with_ridge": str(int(ridge["has_ridge"].sum())),
    }


def facts() -> dict[str, bool]:
    """What the sentences say without a number, by what is said; each must be true."""
    ridge = ridges()
    natural = ridge.loc[["clutrr", "ecqa"]]
    synthetic = ridge.loc["synthetic"]
    steps = list(synthetic.index[synthetic["has_ridge"]])
    scratch = _from_scratch()
    of_task = {"ecqa": "holds", "clutrr": "refuted", "synthetic_arithmetic": "refuted"}
    return {
        "every number is there": not any("nan" in number for number in numbers().values()),
        "CLUTRR and ECQA: the last block has the largest I at every checkpoint": bool(
            (natural["ridge_layer"] == natural["blocks"]).all()
        ),
        "synthetic arithmetic: a ridge untouched and after 20 steps, at no other checkpoint": steps == [0, 20],
        "synthetic arithmetic: the last block has the largest I from step 80 on": bool(
            (synthetic.loc[80:, "ridge_layer"] == synthetic.loc[80:, "blocks"]).all()
        ),
        "untouched, N = 200: the null makes more than nine tenths of the fall": null_share() > 0.9,
        "after the final norm the estimate is lower on synthetic arithmetic, higher on the other tasks": bool(
            (synthetic["at_final_norm"] < synthetic["at_last_block"]).all()
            and (natural["at_final_norm"] > natural["at_last_block"]).all()
        ),
        "untouched: none of six other measures falls beyond its error": _falling_measures(0) == set(),
        "steps 20 and 40: the kernel and the distance measure fall, no other": all(
            _falling_measures(step) == {"alignment", "distance"} for step in (20, 40)
        ),
        "other settings: none has a ridge above its null in the untouched model, nor on CLUTRR and ECQA": not any(
            _controls(task, step)["above_null"].any()
            for task, step in (("synthetic", 0), ("clutrr", 0), ("clutrr", 20), ("ecqa", 0), ("ecqa", 30))
        ),
        "from scratch: at the end a fall of a tenth is excluded for the smallest GPT-2 and the Mamba alone": list(
            scratch.index[scratch.iloc[:, -1] == "refuted"]
        )
        == ["random:gpt2-4x64", "random:mamba-4x64"],
        "from scratch: of all models the smallest GPT-2 alone has a fall on the way": list(
            scratch.index[(scratch == "holds").any(axis=1)]
        )
        == ["random:gpt2-4x64"],
        "from scratch: the two larger GPT-2s are open at every checkpoint": bool(
            (scratch.loc[["random:gpt2-12x64", "random:gpt2-4x128"]] == "undecided").all(axis=None)
        ),
        "from scratch: none answers OOD examples better than by the commonest answer": not _transfers(),
        "cut and fine-tuned: the paper's estimate has a ridge at 8 and 9 blocks alone": _depths_with_ridge() == {8, 9},
        "cut and fine-tuned: without bias information is nowhere above 0 by three standard errors": _cut_z() < 3,
        "fine-tuned: both effects of attention to the signal hold on ECQA and are refuted on the two other tasks": all(
            rows["task"].nunique() == 3 and (rows["state"] == rows["task"].map(of_task)).all()
            for rows in map(_attention, ("fall of attention to the signal", "signal over chance, ridge layer"))
        ),
        "CLUTRR past the lowest loss: the estimate rises, what a probe reads by a hundredth a doubling at most": bool(
            _overfitted("last_block_rise")["low"] > 0 and _overfitted("last_block_probe_rise")["high"] < 1
        ),
        "C5, synthetic arithmetic": list(_scaling()["state"]) == ["undecided", "undecided", "refuted"],
        "step 40: a skipped block of the ridge costs neither a tenth of a nat more nor less than a late one": bool(
            (_scaling().iloc[2][["low", "high"]].astype(float).abs() < 0.1).all()
        ),
        "the OOD exit at the ridge is the worse one, untouched on synthetic arithmetic and fine-tuned on ECQA": bool(
            max(_exit_gain("synthetic", 0)["high"], _exit_gain("ecqa", 30)["high"]) < 0
        ),
        "synthetic arithmetic and CLUTRR, last checkpoint: the interval of the exits holds 0": all(
            _exit_gain(task, 40)["low"] < 0 < _exit_gain(task, 40)["high"] for task in ("synthetic", "clutrr")
        ),
        "step 40: in two of three training seeds the fall is large enough to say how much of it is bias": (
            len(_by_seed("bias_share")) == 2 and len(_by_seed("information_fall")) == 3
        ),
        "step 40: in each seed less than half of the fall is left once the states are centred": bool(
            (_by_seed("correlation_fall")["estimate"] < _by_seed("information_fall")["estimate"] / 2).all()
        ),
        "step 40: in each seed what a probe reads falls by less than a fifth of what the estimate does": bool(
            (_by_seed("probe_fall")["estimate"] < _by_seed("information_fall")["estimate"] / 5).all()
        ),
        "artefacts of spread: Gemma on CLUTRR and ECQA, Qwen 1.5B on CLUTRR": sorted(
            _of_spread().loc["fall of I"].index
        )
        == [("gemma3-270m", "clutrr"), ("gemma3-270m", "ecqa"), ("qwen2.5-coder-1.5b", "clutrr")],
        "artefacts of spread: a loss of a tenth for a probe is excluded": bool(
            (_of_spread().loc[PROBE, "state"] == "refuted").all()
        ),
        "pretrained: a probe's loss is beyond its error in Gemma fine-tuned on ECQA alone": (
            _certain().loc[_certain()["probe_fall_low"] > 0, ["model", "task", "step"]].to_numpy().tolist()
            == [["gemma3-270m", "ecqa", 15], ["gemma3-270m", "ecqa", 30]]
        ),
        "Gemma fine-tuned on ECQA: three seeds, its spread undecided, more than a fifth of the answers right": bool(
            (_tuned_ecqa()["seeds"] == 3).all()
            and (_tuned_ecqa()["centred_fall_low"] < 0.1).all()
            and (_tuned_ecqa()["centred_fall_high"] > 0.1).all()
            and len(_solved("gemma3-270m-ecqa/anatomy", 30, 0.2)) == 3
        ),
        "pretrained: wherever it is decided, the exit at the ridge layer is no better OOD than the last": _exits()
        == {"refuted", "undecided"},
        "Gemma fine-tuned for 20 steps: three seeds, its spread undecided": bool(
            _deep()["seeds"] == 3 and _deep()["centred_fall_low"] < 0.1 < _deep()["centred_fall_high"]
        ),
        "Gemma fine-tuned for 40 steps: a probe reads more under the two seeds right in most ID examples": bool(
            len(_learnt("probe_fall")) == 2
            and (_learnt("probe_fall") < 0).all()
            and set(_learnt("probe_fall").index) == _solved("gemma3-270m-synthetic/anatomy", 40)
        ),
        "ECQA's letters: no better than the commonest": not _knows_letters(),
        "ECQA's letters: an artefact of bias": set(_letters()["verdict"] + _letters()["why"]) == {"artefactof bias"},
        "step 40: the ridge is undecided by the protocol": set(_judged()["verdict"]) == {"undecided"},
    }


def draw() -> None:
    """Draw the two panels of the first page, with the digests of their tables in the files' metadata."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from ridge_utils import figures

    figures.style()
    panels = [plt.subplots(figsize=(4.4, 3.7)) for _ in IMAGES]
    (_, left), (_, right) = panels
    profiles = untouched()
    left.plot(profiles["predictive_information"], color="#0072b2", label="the paper's estimate, N = 200")
    left.plot(profiles["null_information"], color="#0072b2", linestyle="--", label="its targets shuffled")
    left.plot(profiles["unbiased_information"], color="#009e73", label="without bias (order 2), 95 % interval")
    ends = (profiles[f"unbiased_information_{end}"] for end in ("low", "high"))
    left.fill_between(profiles.index.astype(int), *ends, color="#009e73", alpha=0.25, lw=0)
    left.set_title("Untouched, synthetic arithmetic: chance gives\nnearly the same curve", fontsize=10)
    left.set_ylabel("I(Z; Y) in nats")
    for (name, (run, step)), colour in zip(PROFILES.items(), ("#0072b2", "#d55e00", "#cc79a7"), strict=True):
        rows = reference(run)
        rows = rows[(rows["split"] == "all") & (rows["step"] == step) & (rows["site"] != "final_norm")]
        profile = rows[rows["quantity"] == "predictive_information"].groupby("layer")["value"].mean()
        right.plot(profile / profile.max(), color=colour, label=name)
    right.set_title("Early in fine-tuning: a fall before\nthe end on one task of three", fontsize=10)
    right.set_ylabel("I(Z; Y), share of its largest value")
    for (figure, ax), path in zip(panels, IMAGES, strict=True):
        ax.set_xlabel("layer")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=9, loc="upper left")
        figure.savefig(path, dpi=160, metadata={"Source": source()})


def source() -> str:
    """The digests of the tables that the figure is drawn from."""
    names = [ANATOMY, *(run for run, _ in PROFILES.values())]
    return " ".join(results.read(results.FOLDER / "reference" / f"{name}.csv")[1]["sha256"][:12] for name in names)


if __name__ == "__main__":
    draw()
