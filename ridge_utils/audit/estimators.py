"""Measures of dependence beside the matrix-based one, and distributions whose mutual information is known.

Tensors in, numbers out, information in nats; this module knows no model. The estimators of mutual information give one
term per example: their mean is the estimate, and differences between two layers can be taken within examples.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import digamma
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.errors import InputError, at_least, valid_seed, within

#: Held-out parts of every cross-fitted estimate.
FOLDS = 5
#: Neighbours of the estimators of Kraskov and Ross, as Kraskov et al. recommend (2 to 4).
NEIGHBOURS = 3

#: Relative to the values themselves, smaller variation than this is rounding.
_CONSTANT = 1e-9

# Of the InfoNCE critic: two towers of one hidden layer, trained with AdamW.
_HIDDEN, _SCORES = 64, 32
_BATCH, _RATE, _DECAY = 128, 3e-3, 1e-2
#: Steps between two looks at the validation examples, and looks without a better bound after which training ends.
_LOOK, _PATIENCE = 10, 5


def info_nce(x: Tensor, y: Tensor, seed: int = 0, groups: Tensor | None = None, steps: int = 300) -> Tensor:
    r"""Lower bound on mutual information from telling true pairs from false ones [OordLV18]_, on held-out examples.

    With a critic f, each example's term among the K examples of its fold is

    .. math:: f(x_i, y_i) - \ln \frac{1}{K} \sum_{j=1}^K e^{f(x_i, y_j)},

    and its mean never exceeds :math:`\ln K`, nor, in expectation, :math:`I(X;Y)`. The critic is the inner product of
    two small networks, of x and of y. It is trained on four folds, a fifth of them kept for choosing the step at which
    to stop; the bound is evaluated on the fifth fold, so what a critic memorises does not count. Where no step beats
    the constant critic on the validation examples, the terms are 0.

    Args:
        x: samples, shape (..., N, d), such as the states of several layers; leading dimensions are trained side by
            side, from the same start and on the same batches.
        y: samples paired with them, shape (N, e).
        groups: shape (N,); examples of the same group share a fold. None: each for itself.
        steps: of the training, at most.

    Returns:
        Terms, shape (..., N).

    .. [OordLV18] A. van den Oord, Y. Li, O. Vinyals. *Representation Learning with Contrastive Predictive Coding.*
       2018. arXiv:1807.03748.
    """
    x, y = tensors.paired(x, y, shapes=("(..., N, d)", "(N, e)"))
    at_least(1, 10**6, steps=steps)
    groups = None if groups is None else tensors.whole(groups, "groups")
    flat = tensors.single(x.reshape(-1, *x.shape[-2:]), "x")
    terms = torch.zeros(len(flat), x.shape[-2], dtype=torch.float64)
    for fitting, test in splits(x.shape[-2], seed, groups):
        inner = splits(len(fitting), seed, None if groups is None else groups[fitting])[0]
        train, validation = (fitting[index] for index in inner)
        terms[:, test] = _held_out(flat, tensors.single(y, "y"), (train, validation, test), seed, steps)
    return terms.reshape(x.shape[:-1])


def ksg(x: Tensor, y: Tensor) -> Tensor:
    r"""Mutual information of two continuous variables from nearest neighbours (Kraskov's first estimator).

    Let :math:`\epsilon_i` be the distance from example i to its k-th neighbour in the joint space, the larger of the
    Euclidean distances of x and of y, and :math:`n_x(i)`, :math:`n_y(i)` the numbers of others that are nearer than it
    in x and in y. Each term is :math:`\psi(k) + \psi(N) - \psi(n_x(i) + 1) - \psi(n_y(i) + 1)`. Where examples are
    repeated and :math:`\epsilon_i = 0`, k is the number of copies; where a variable is the same for all, the terms are
    0. [KraskovSG04]_

    In more than a few dimensions neighbours are all equally far, and the estimate falls behind: reduce the variables,
    of shapes (N, d) and (N, e), first; see :func:`principal_components`. The terms have shape (N,).

    .. [KraskovSG04] A. Kraskov, H. Stögbauer, P. Grassberger. *Estimating Mutual Information.* Physical Review E 69,
       066138, 2004. arXiv:cond-mat/0305641.
    """
    x, y = tensors.paired(x, y, shapes=("(N, d)", "(N, e)"))
    if len(x) <= NEIGHBOURS:
        raise InputError(f"More than {NEIGHBOURS} examples are needed for {NEIGHBOURS} neighbours; here are {len(x)}.")
    in_x, in_y = _distances(x), _distances(y)
    if not in_x.any() or not in_y.any():
        return torch.zeros(len(x), dtype=torch.float64)
    joint = np.maximum(in_x, in_y)
    reach = np.sort(joint, axis=1)[:, NEIGHBOURS]  # entry 0 is the example itself
    nearest = np.where(reach > 0, NEIGHBOURS, (joint == 0).sum(1) - 1)
    terms = digamma(nearest) + digamma(len(x)) - digamma(_within(in_x, reach)) - digamma(_within(in_y, reach))
    return torch.from_numpy(terms)


def ksg_discrete(x: Tensor, labels: Tensor) -> Tensor:
    r"""Mutual information of a continuous and a discrete variable from nearest neighbours (Ross's estimator).

    Let :math:`d_i` be the distance from example i to its k-th neighbour of the same label, of which there are
    :math:`n_i` with itself, and :math:`m_i` the number of examples of any label that are nearer, itself counted. Each
    term is :math:`\psi(N) + \psi(k) - \psi(n_i) - \psi(m_i)`; k is smaller where a label has fewer examples, and the
    terms are 0 where x is the same for all. [Ross14]_

    The samples have shape (N, d), of few dimensions; labels and terms have shape (N,). Each label occurs twice or more.

    .. [Ross14] B. C. Ross. *Mutual Information between Discrete and Continuous Data Sets.* PLoS ONE 9(2), e87357, 2014.
    """
    x, labels = tensors.samples(x, "x", "(N, d)"), tensors.whole(labels, "labels")
    tensors.same_number(x, labels, ("x", "labels"), (-2, -1))
    distance, labels = _distances(x), labels.numpy()
    alone = [int(label) for label, count in zip(*np.unique(labels, return_counts=True), strict=True) if count < 2]
    if alone:
        raise InputError(f"Each label must occur twice or more, but {alone[0]} does not: leave its example out.")
    if not distance.any():
        return torch.zeros(len(x), dtype=torch.float64)
    same = labels[:, None] == labels
    members = same.sum(1)
    nearest = np.minimum(NEIGHBOURS, members - 1)
    in_class = np.sort(np.where(same, distance, np.inf), axis=1)
    reach = np.take_along_axis(in_class, nearest[:, None], axis=1)[:, 0]
    nearest = np.where(reach > 0, nearest, (in_class == 0).sum(1) - 1)
    terms = digamma(len(x)) + digamma(nearest) - digamma(members) - digamma(_within(distance, reach))
    return torch.from_numpy(terms)


def bias_corrected_correlation(a: Tensor, b: Tensor) -> Tensor:
    r"""Correlation of two matrices over the same N samples, their diagonals left out, each U-centred.

    U-centring takes off row and column means with the denominators that make the mean product unbiased,
    :math:`a_{ij} - \frac{a_{i\cdot} + a_{\cdot j}}{N-2} + \frac{a_{\cdot\cdot}}{(N-1)(N-2)}` for :math:`i \ne j`.

    Of Euclidean distances it is the bias-corrected distance correlation [SzekelyR13]_: 0 in the mean without
    dependence, 1 for similar shapes. Of inner products it is centred kernel alignment with linear kernels (CKA)
    [KornblithNLH19]_ without its bias in many dimensions, the unbiased estimate of the Hilbert-Schmidt independence
    criterion in place of the plain one [SongSGBB12]_.

    The matrices are symmetric, of shape (..., N, N), and leading dimensions broadcast. The correlation, shape (...),
    lies between -1 and 1; it is 0 where a matrix is constant.

    .. [SzekelyR13] G. J. Székely, M. L. Rizzo. *The Distance Correlation t-Test of Independence in High Dimension.*
       Journal of Multivariate Analysis 117, 2013.
    .. [KornblithNLH19] S. Kornblith, M. Norouzi, H. Lee, G. Hinton. *Similarity of Neural Network Representations
       Revisited.* ICML 2019. arXiv:1905.00414.
    .. [SongSGBB12] L. Song, A. Smola, A. Gretton, J. Bedo, K. Borgwardt. *Feature Selection via Dependence
       Maximization.* JMLR 13, 2012.
    """
    a, b = (tensors.symmetric(one, name, 4, math.inf) for one, name in ((a, "a"), (b, "b")))
    tensors.same_number(a, b, ("a", "b"))
    a, b = _u_centred(a), _u_centred(b)
    product, scale = (a * b).sum((-2, -1)), ((a * a).sum((-2, -1)) * (b * b).sum((-2, -1))).sqrt()
    return torch.where(scale > 0, product / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)


def principal_components(x: Tensor, n: int) -> Tensor:
    """Leading principal components of standardised samples: the reduction before neighbours and critics.

    Every dimension is standardised, so that the few that are much larger than the rest do not drown them; then the
    samples are projected on their ``n`` leading directions and divided by one number, the root mean square. A
    projection loses information, it never adds any.

    Returns:
        Shape (N, min(n, d, N)) for samples of shape (N, d), float64; zeros where all samples are equal.
    """
    x = tensors.samples(x, "x", "(N, d)")
    at_least(1, n=n)
    standardised = StandardScaler().fit_transform(x.numpy())
    n = min(n, *standardised.shape)
    if np.abs(standardised).max() < _CONSTANT:
        return torch.zeros(len(x), n, dtype=torch.float64)
    reduced = torch.from_numpy(PCA(n, svd_solver="full").fit_transform(standardised))
    return reduced / reduced.square().mean().sqrt()


def splits(n: int, seed: int, groups: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """Indices of the training and the held-out examples of each fold.

    Examples of the same group are held out together, with ``groups`` of shape (n,); without, each for itself.
    """
    at_least(2, n=n)
    valid_seed(seed=seed)
    group_of = (torch.arange(n) if groups is None else tensors.whole(groups, "groups")).numpy()
    if len(group_of) != n:
        raise InputError(f"groups must name the group of each of {n} examples, but has shape {group_of.shape}.")
    if (different := len(np.unique(group_of))) < FOLDS:
        raise InputError(
            f"{FOLDS} folds need at least as many groups of examples, but there are {different}: take more examples."
        )
    folded = GroupKFold(FOLDS, shuffle=True, random_state=seed).split(group_of, groups=group_of)
    return [(torch.from_numpy(train), torch.from_numpy(test)) for train, test in folded]


@dataclass(frozen=True)
class Known:
    """Samples of two variables whose mutual information is known."""

    #: what kind of distribution it is, for legends
    family: str
    #: samples, shape (N, d), float64
    x: Tensor
    #: samples paired with them, shape (N, e), float64
    y: Tensor
    #: where y takes few values, which one, shape (N,), int64; None where y is continuous
    labels: Tensor | None
    #: the true mutual information, nats
    information: float


def gaussian(n: int, dimensions: int, information: float, seed: int = 0) -> Known:
    r"""Two standard Gaussian vectors, correlated dimension by dimension.

    With the correlation :math:`\rho` in each of d dimensions, :math:`I = -\frac{d}{2} \ln(1 - \rho^2)` nats, which is
    given and sets the correlation.
    """
    at_least(2, 10**8, n=n)
    at_least(1, 10**6, dimensions=dimensions)
    within(0, 100, information=information)
    valid_seed(seed=seed)
    correlation = math.sqrt(-math.expm1(-2 * information / dimensions))
    x, noise = _normal(2, n, dimensions, seed=seed)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    plural = "s" if dimensions > 1 else ""
    return Known(f"Gaussian, {dimensions} dimension{plural}", x, y, None, information)


def channel(n: int, symbols: int, error: float, seed: int = 0) -> Known:
    r"""A uniform symbol sent through a symmetric channel: with probability e it arrives as one of the K - 1 others.

    :math:`I = \ln K + (1 - e) \ln (1 - e) + e \ln \frac{e}{K - 1}`. Both sides are given as one-hot vectors.
    """
    at_least(2, 10**8, n=n, symbols=symbols)
    valid_seed(seed=seed)
    within(0, 1, error=error)
    rng = np.random.default_rng(seed)
    sent = rng.integers(symbols, size=n)
    arrived = np.where(rng.random(n) < error, (sent + rng.integers(1, symbols, size=n)) % symbols, sent)
    information = math.log(symbols) + sum(
        p * math.log(p / count) for p, count in ((1 - error, 1), (error, symbols - 1)) if p > 0
    )
    x, labels = torch.from_numpy(sent), torch.from_numpy(arrived)
    one_hot = torch.eye(symbols, dtype=torch.float64)
    return Known(f"channel, {symbols} symbols", one_hot[x], one_hot[labels], labels, information)


def clusters(n: int, classes: int, dimensions: int, separation: float, seed: int = 0) -> Known:
    r"""Equally likely classes as Gaussian clouds of unit variance around centres that are equally far apart.

    The centre of class c is ``separation`` times the c-th unit vector, in standard deviations of a cloud; dimensions
    beyond the K classes are noise. The truth is the mean over 100,000 draws of their own,
    :math:`I = \ln K - \mathbb{E} \ln \sum_c e^{\ln p(x|c) - \ln p(x|y)}`.
    """
    at_least(2, 10**8, n=n, classes=classes)
    at_least(1, 10**6, dimensions=dimensions)
    within(0, 1e6, separation=separation)
    valid_seed(seed=seed)
    if dimensions < classes:
        raise InputError(f"dimensions must be at least classes={classes}, but is {dimensions}.")
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(classes, size=n))
    centres = separation * torch.eye(classes, dimensions, dtype=torch.float64)
    x = centres[labels] + _normal(n, dimensions, seed=seed)
    # By symmetry class 0 stands for all, and ln p(x|c) is separation * x_c but for what all classes share.
    draws = _normal(100_000, classes, seed=0) + centres[0, :classes]
    surprise = (separation * draws).logsumexp(-1) - separation * draws[:, 0]
    information = math.log(classes) - surprise.mean().item()
    return Known(
        f"{classes} clusters, {dimensions} dimensions", x, torch.eye(classes).double()[labels], labels, information
    )


def _held_out(x: Tensor, y: Tensor, parts: tuple[Tensor, Tensor, Tensor], seed: int, steps: int) -> Tensor:
    """InfoNCE terms of the last of three parts under critics trained on the first and stopped by the second."""
    train, validation, test = parts
    generator = torch.Generator().manual_seed(seed)
    towers = [_tower(x.shape[-1], len(x), generator), _tower(y.shape[-1], len(x), generator)]
    weights = [weight for tower in towers for weight in tower]
    optimiser = torch.optim.AdamW(weights, lr=_RATE, weight_decay=_DECAY)

    def terms(index: Tensor) -> Tensor:
        left, right = _through(towers[0], x[:, index]), _through(towers[1], y[index])
        scores = left @ right.mT / math.sqrt(_SCORES)
        return scores.diagonal(dim1=-2, dim2=-1) - scores.logsumexp(-1) + math.log(len(index))

    best, waited = torch.zeros(len(x)), 0
    held_out = torch.zeros(len(x), len(test))
    for step in range(1, steps + 1):
        batch = train[torch.randperm(len(train), generator=generator)[:_BATCH]]
        optimiser.zero_grad()
        (-terms(batch).mean(-1).sum()).backward()
        optimiser.step()
        if step % _LOOK:
            continue
        with torch.no_grad():
            bound = terms(validation).mean(-1)
            better = bound > best
            best = torch.where(better, bound, best)
            held_out = torch.where(better[:, None], terms(test), held_out)
        waited = 0 if bool(better.any()) else waited + 1
        if waited == _PATIENCE:
            break
    return held_out.double()


def _tower(width: int, copies: int, generator: torch.Generator) -> list[Tensor]:
    """Weights and biases of a network with one hidden layer, equal in all its copies."""
    first = torch.randn(width, _HIDDEN, generator=generator) / math.sqrt(width)
    second = torch.randn(_HIDDEN, _SCORES, generator=generator) / math.sqrt(_HIDDEN)
    start = (first, torch.zeros(1, _HIDDEN), second, torch.zeros(1, _SCORES))
    return [weight.repeat(copies, 1, 1).requires_grad_() for weight in start]


def _through(tower: list[Tensor], samples: Tensor) -> Tensor:
    first, offset, second, shift = tower
    return (samples @ first + offset).relu() @ second + shift


def _u_centred(matrix: Tensor) -> Tensor:
    n = matrix.shape[-1]
    off = ~torch.eye(n, dtype=torch.bool, device=matrix.device)
    matrix = matrix.double() * off
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    sums = matrix.sum(-1, keepdim=True)
    centred = matrix - (sums + sums.mT) / (n - 2) + sums.sum(-2, keepdim=True) / ((n - 1) * (n - 2))
    centred = centred * off
    # What rounding leaves of a constant matrix must not be taken for a shape.
    return torch.where(centred.abs().amax((-2, -1), keepdim=True) > _CONSTANT * largest, centred, 0.0)


def _distances(x: Tensor) -> np.ndarray:
    return cdist(x.numpy(), x.numpy())


def _within(distance: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """How many examples are nearer than ``reach``, the example itself counted; of copies, how many others there are."""
    nearer = (distance < reach[:, None]).sum(1)
    return np.where(reach > 0, nearer, np.maximum((distance == 0).sum(1) - 1, 1))


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, 1]).standard_normal(shape))
