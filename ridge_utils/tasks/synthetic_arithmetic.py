"""Synthetic arithmetic (paper, Section 4.1): find the rule behind a sequence of signals written among noise.

A sequence has ten elements ``S{signal} N{noise}`` with signals s_t = (s_0 + t d) mod K. The prompt holds the first nine
elements and the tenth's ``S``; the target is the tenth signal:

    S4 N3 S7 N1 S10 N9 S0 N2 S3 N3 S6 N8 S9 N4 S12 N0 S2 N5 S   →   5

Training and in-distribution (ID) sequences have K = 13, out-of-distribution (OOD) ones K uniform on {5, …, 25} without
13. d = 0, a constant sequence, is left out.

Where a tokenizer spells digits, 1 and 10 to 19 share their first token, the one that is measured, and so do 2 and 20 to
24. With ``answer="letter"`` the signals 0 to 24 are the letters A to Y instead, set off by a space:

    S E N3 S H N1 S K N9 S A N0 S D N3 S G N8 S J N4 S M N0 S C N5 S   →   " F"

With SmolLM2's tokenizer the targets are 25 different tokens, and each signal of the prompt is the token of its target.
With a tokenizer of single bytes, as the untrained models have, the token would be the space: leave them the numbers.
"""

import hashlib
import itertools
import random
import string
from typing import Annotated, Literal

from pydantic import Field

from ridge_utils.errors import InputError, TooFewExamplesError, shown
from ridge_utils.tasks.base import MOST, Example, Split

NAME = "synthetic_arithmetic"
LENGTH = 10
ID_MODULUS = 13
OOD_MODULI = tuple(k for k in range(5, 26) if k != ID_MODULUS)

#: How a signal is written, with what stands before it, by the form of the answers.
_SIGNALS = {
    "number": tuple(str(signal) for signal in range(max(OOD_MODULI))),
    # Without the space a letter can be one token with the S before it.
    "letter": tuple(f" {letter}" for letter in string.ascii_uppercase[: max(OOD_MODULI)]),
}
#: Every (s_0, d) with K = 13.
_PAIRS = tuple(itertools.product(range(ID_MODULUS), range(1, ID_MODULUS)))
#: Of the noise sequences, this share of 10 belongs to training and the rest to evaluation.
_TRAIN_TENTHS = 8
#: With up to this many noise sequences they are counted one by one; beyond, a split cannot run out.
_COUNTED = 50_000


def load(
    split: Split,
    n: int | None,
    seed: int = 0,
    *,
    noise_max: Annotated[int, Field(ge=0, le=10**6, description="an integer from 0 to 1000000")] = 9,
    holdout: Annotated[float, Field(ge=0, lt=1, description="a number of at least 0 and less than 1")] = 0.0,
    answer: Annotated[Literal["number", "letter"], Field(description="number or letter")] = "number",
) -> list[Example]:
    """``n`` different sequences, whose ``signal_spans`` cover ``S{signal}`` of the nine elements in the prompt.

    Training and evaluation are disjoint whatever n and the seeds: every sequence of noise values belongs to one of the
    two by its hash. Signals are not disjoint by default, since K = 13 has only 13 · 12 = 156 of them; ``holdout`` keeps
    a share of those, in [0, 1), out of training, and ID examples are then drawn from that share alone. Noise is uniform
    on {0, …, ``noise_max``}; the paper does not state its range. Signals are written as ``answer`` says, in prompt and
    target; a seed draws the same sequences for both.
    """
    if n is None:
        raise InputError(f"Task {NAME!r} is generated and has no end: say how many examples it should give.")
    held_out = held_out_pairs(holdout)
    pairs = [pair for pair in _PAIRS if not held_out or (pair in held_out) == (split == "id")]
    available = _count(split, noise_max, len(pairs))
    if n > available:
        raise TooFewExamplesError(
            f"{shown(n)} examples were asked for, but the {split} split of {NAME} has {available} with "
            f"noise_max={noise_max} and holdout={holdout}: ask for fewer, or raise noise_max."
        )
    # A string seeds Python's generator through SHA-512, the same on every machine and version since 3.2.
    rng = random.Random(f"{NAME}/{split}/{seed}")
    examples: list[Example] = []
    seen: set[str] = set()
    while len(examples) < n:
        if split == "ood":
            modulus = rng.choice(OOD_MODULI)
            start, step = rng.randrange(modulus), rng.randrange(1, modulus)
        else:
            modulus = ID_MODULUS
            start, step = rng.choice(pairs)
        noise = tuple(rng.randrange(noise_max + 1) for _ in range(LENGTH - 1))
        if _is_training_noise(noise) != (split == "train"):
            continue
        example = _write(start, step, modulus, noise, split, _SIGNALS[answer])
        # Two OOD rules can write the same prompt (all signals below both moduli), so the text is compared.
        if example.prompt not in seen:
            seen.add(example.prompt)
            examples.append(example)
    return examples


def held_out_pairs(holdout: float) -> frozenset[tuple[int, int]]:
    """The pairs (s_0, d) with K = 13 that training never shows when ``holdout`` of them are kept out."""
    pairs = list(_PAIRS)
    random.Random(f"{NAME}/holdout").shuffle(pairs)
    count = round(holdout * len(pairs))
    if holdout > 0 and count in (0, len(pairs)):
        raise InputError(
            f"holdout={holdout} holds out {count} of {len(pairs)} pairs; choose a share that leaves some on both sides."
        )
    return frozenset(pairs[:count])


def _write(
    start: int, step: int, modulus: int, noise: tuple[int, ...], split: Split, written: tuple[str, ...]
) -> Example:
    signals = [written[(start + t * step) % modulus] for t in range(LENGTH)]
    prompt, spans = "", []
    for signal, value in zip(signals[:-1], noise, strict=True):
        element = f"S{signal}"
        spans.append((len(prompt), len(prompt) + len(element)))
        prompt += f"{element} N{value} "
    return Example(f"{prompt}S", signals[-1], split, "synthetic", tuple(spans))


def _is_training_noise(noise: tuple[int, ...]) -> bool:
    return hashlib.sha256(repr(noise).encode()).digest()[0] * 10 < _TRAIN_TENTHS * 256


def _count(split: Split, noise_max: int, pairs: int) -> int:
    """Number of different sequences in a split, or the most that are made of it."""
    if (noise_max + 1) ** (LENGTH - 1) > _COUNTED:
        return MOST
    all_noise = itertools.product(range(noise_max + 1), repeat=LENGTH - 1)
    noises = sum(_is_training_noise(noise) == (split == "train") for noise in all_noise)
    if split != "ood":
        return noises * pairs
    prompts = {
        tuple((start + t * step) % modulus for t in range(LENGTH - 1))
        for modulus in OOD_MODULI
        for start in range(modulus)
        for step in range(1, modulus)
    }
    return noises * len(prompts)
