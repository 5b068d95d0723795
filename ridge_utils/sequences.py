r"""Predictive information of whole sequences: one Gram matrix over N sequences of states (paper, Section 5).

Tensors in, float64 tensors out, in nats; this module knows no model. The paper says no more of its kernel than that it
averages pairwise token similarities. That can mean all pairs of steps, or each step of one sequence with the same step
of the other; :func:`sequence_gram_matrices` has both, because they differ in what happens as sequences grow.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.errors import InputError, shown
from ridge_utils.information import Estimator, entropy, gram_matrix, joint_entropy
from ridge_utils.kernels import check_bandwidth, unit_rows

Pairs = Literal["all", "aligned"]

#: Token pairs compared at a time; a few float64 tensors of this size are alive at once, 16 MiB each.
_PAIRS = 2**21


def sequence_gram_matrices(x: Tensor, steps: Sequence[int], bandwidth: float = 1.0, pairs: Pairs = "all") -> Tensor:
    r"""Gram matrices of the sequence kernel over the first t steps, for each t of ``steps``.

    With the l2-normalised state :math:`u_i^a` of sequence i at step a, bandwidth :math:`s`, and the Gaussian kernel
    :math:`k(u, v) = \exp(-\lVert u - v \rVert^2 / (2 s^2))`, the sequence kernel :math:`K^{(t)}_{ij}` is

    * ``all``: :math:`\frac{1}{t^2} \sum_{a, b \le t} k(u_i^a, u_j^b)`, the mean over all pairs of steps so far;
    * ``aligned``: :math:`\frac{1}{t} \sum_{a \le t} k(u_i^a, u_j^a)`, the mean over pairs of the same step.

    The Gram matrix has the entries :math:`K^{(t)}_{ij} / (N \sqrt{K^{(t)}_{ii} K^{(t)}_{jj}})`. Both kernels are
    positive semi-definite, ``all`` as the inner product of mean embeddings, but the diagonal of ``all`` is not
    constant. The estimator's inequalities, such as :math:`I \ge 0`, need a constant one, hence the square roots in
    place of the trace (the normalisation of Sanchez Giraldo, Rao, Principe 2014). For ``aligned``, and for t = 1, the
    two are the same; and at t = 1 the matrix is that of :func:`ridge_utils.kernels.gram_matrix`.

    Under ``all`` the order of the steps is lost, and the mean embeddings of long sequences come close to each other, so
    that their entropy falls as t grows. Under ``aligned`` more steps tell more sequences apart, and it can grow.

    Time of ``all`` grows with the square of N max(steps); beyond the input and the result, its memory is about 100 MiB,
    or a few tensors of N max(steps)^2 entries where those are larger.

    N sequences of T states, shape (N, T, d), give symmetric positive semi-definite matrices of trace 1, shape
    (len(steps), N, N), float64.
    """
    x = tensors.shaped(x, "x", "(N, T, d)")
    _check(x, "x", steps, bandwidth, pairs)
    return _gram_matrices(x, "x", steps, bandwidth, pairs)


def _gram_matrices(x: Tensor, name: str, steps: Sequence[int], bandwidth: float, pairs: Pairs) -> Tensor:
    units = unit_rows(tensors.samples(x[:, : max(steps)], name, "(N, T, d)"), name)
    counts = torch.tensor(list(steps), device=units.device)
    if pairs == "aligned":
        grams = gram_matrix(units.transpose(0, 1), Estimator(bandwidth=bandwidth))
        return grams.cumsum(0)[counts - 1] / counts[:, None, None]
    # Sums do for means: the factor 1 / t^2 cancels in the normalisation.
    sums = _sums_over_all_pairs(units, counts - 1, bandwidth)
    root = sums.diagonal(dim1=-2, dim2=-1).sqrt()
    return sums / root.unsqueeze(-1) / root.unsqueeze(-2) / len(x)


def sequence_information(
    hidden: Tensor,
    targets: Tensor,
    steps: Sequence[int],
    bandwidth: float = 1.0,
    pairs: Pairs = "all",
    *,
    samples: Sequence[Tensor] | None = None,
) -> Tensor:
    r"""Predictive information :math:`I(Z_l^{(t)}; Y^{(t)})` of the first t decoding steps, per layer, in nats.

    :math:`Z_l^{(t)}` is the sequence of states that layer l has at the first t steps, :math:`Y^{(t)}` the sequence of
    the input-embedding rows of the tokens that they predict. Both have a Gram matrix of
    :func:`sequence_gram_matrices`, and :math:`I = H(G_Z) + H(G_Y) - H(G_Z \circ G_Y)` as for one token. It lies between
    0 and :math:`\min(H(G_Z), H(G_Y))`; at t = 1 it is the predictive information of the first token (paper, Section 5).

    Args:
        hidden: states over T decoding steps, shape (layers, N, T, d).
        targets: input-embedding rows of the tokens of the same steps, shape (N, T, e).
        steps: numbers of steps t, each between 1 and T.
        samples: indices of sequences; one profile is estimated from each of them, the kernel computed once for all.

    Returns:
        Shape (layers, len(steps)), float64; with samples, shape (samples, layers, len(steps)).
    """
    hidden = tensors.shaped(hidden, "hidden", "(layers, N, T, d)")
    targets = tensors.shaped(targets, "targets", "(N, T, e)")
    if hidden.shape[1:3] != targets.shape[:2]:
        raise InputError(
            "hidden of shape (layers, N, T, d) and targets of shape (N, T, e) must have the same N and T, but have "
            f"shapes {tuple(hidden.shape)} and {tuple(targets.shape)}."
        )
    _check(targets, "targets", steps, bandwidth, pairs)
    chosen = [torch.arange(len(targets))] if samples is None else tensors.indices(samples, "samples", len(targets))
    grams_y = _sampled(_gram_matrices(targets, "targets", steps, bandwidth, pairs), chosen)
    entropies_y = [entropy(gram) for gram in grams_y]
    profiles = hidden.new_empty(len(chosen), len(hidden), len(steps), dtype=torch.float64)
    for layer, states in enumerate(hidden):
        grams_z = _sampled(_gram_matrices(states, f"hidden[{layer}]", steps, bandwidth, pairs), chosen)
        for number, (gram_z, gram_y, entropy_y) in enumerate(zip(grams_z, grams_y, entropies_y, strict=True)):
            profiles[number, layer] = entropy(gram_z) + entropy_y - joint_entropy(gram_z, gram_y)
    return profiles[0] if samples is None else profiles


def _sampled(gram: Tensor, samples: Sequence[Tensor]) -> list[Tensor]:
    """The Gram matrices of samples of sequences; an entry depends on its two sequences and on N alone."""
    return [gram[..., sample[:, None], sample] * (gram.shape[-1] / len(sample)) for sample in samples]


def _check(x: Tensor, name: str, steps: Sequence[int], bandwidth: float, pairs: str) -> None:
    length, shape = x.shape[-2], tuple(x.shape)
    fits = isinstance(steps, Sequence) and all(
        isinstance(step, Integral) and not isinstance(step, bool) and 1 <= step <= length for step in steps
    )
    if not fits or not steps:
        raise InputError(
            f"steps must be one or more whole numbers from 1 to {length}, the T of {name} of shape {shape}, but is "
            f"{shown(steps)}."
        )
    if bandwidth == "median":
        raise InputError("bandwidth must be a number: there is no median rule for sequences.")
    check_bandwidth(bandwidth)
    if pairs not in get_args(Pairs):
        raise InputError(f"pairs must be one of {', '.join(get_args(Pairs))}, but is {shown(pairs)}.")


def _sums_over_all_pairs(units: Tensor, last: Tensor, bandwidth: float) -> Tensor:
    """Sums of the kernel over all pairs of steps up to each of ``last``, shape (len(last), N, N)."""
    n, length, _ = units.shape
    rows = units.flatten(0, 1)
    sums = rows.new_empty(len(last), n, n)
    upto = (torch.arange(length, device=units.device).unsqueeze(1) <= last).to(units.dtype)  # (T, len(last))
    block = max(1, _PAIRS // (n * length**2))
    for start in range(0, n, block):
        stop = min(start + block, n)
        # Half the squared distance with its sign turned, between these sequences and those not yet compared with all.
        exponent = (rows[start * length : stop * length] @ rows[start * length :].T).sub_(1).clamp_(max=0)
        # Each state against itself; rounding leaves about 1e-16 there, which counts at small bandwidths.
        exponent.diagonal().zero_()
        tokens = exponent.div_(bandwidth**2).exp_().view(stop - start, length, n - start, length)
        upper = torch.einsum("iajt,at->tij", tokens @ upto, upto)
        sums[:, start:stop, start:] = upper
        sums[:, start:, start:stop] = upper.mT
    return sums
