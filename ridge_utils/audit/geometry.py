r"""The geometry of hidden states over depth, and transformations that take parts of it away.

Tensors in, float64 tensors out; this module knows no model. Every function takes samples ``x`` of shape (..., N, d), so
all layers can be given at once, and raises InputError for fewer than 2 samples and for a NaN or infinite entry. States
of language models are anisotropic: they share a direction, and a few coordinates and principal components carry most of
their length ([Ethayarajh19]_, [TimkeyS21]_, [MuV18]_). A kernel on states of length 1 sees what is left beside them.

.. [Ethayarajh19] K. Ethayarajh. *How Contextual are Contextualized Word Representations?* EMNLP 2019. arXiv:1909.00512.
.. [TimkeyS21] W. Timkey, M. van Schijndel. *All Bark and No Bite: Rogue Dimensions in Transformer Language Models
   Obscure Representational Quality.* EMNLP 2021. arXiv:2109.04404.
.. [MuV18] J. Mu, P. Viswanath. *All-but-the-Top: Simple and Effective Postprocessing for Word Representations.* ICLR
   2018. arXiv:1702.01417.
.. [RoyV07] O. Roy, M. Vetterli. *The Effective Rank: A Measure of Effective Dimensionality.* EUSIPCO 2007.
"""

import torch
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.errors import InputError, at_least

#: What is smaller than this beside the longest sample is rounding: far above that of float64, below that of float32.
_ROUNDING = 1e-9

#: :func:`whitened` keeps at most one component for so many samples.
SAMPLES_PER_COMPONENT = 5


def mean_cosine(x: Tensor) -> Tensor:
    r"""Mean cosine between two different samples, :math:`\frac{1}{N(N-1)} \sum_{i \ne j} \cos(x_i, x_j)`.

    A measure of anisotropy, between -1/(N-1) and 1: 0 for directions spread evenly, 1 where all samples have one
    direction. A zero sample counts as orthogonal to all others.
    """
    x = unit_length(x)
    n = x.shape[-2]
    # The sum over all pairs is the squared length of the sum; the N pairs of a sample with itself go.
    return (x.sum(-2).square().sum(-1) - x.square().sum((-2, -1))) / (n * (n - 1))


def effective_rank(x: Tensor) -> Tensor:
    r"""Effective rank of centred samples, :math:`\exp(-\sum_k p_k \ln p_k)`, with :math:`p_k` the shares of variance.

    The shares are the eigenvalues of the covariance over their sum; [RoyV07]_ take singular values, their roots. The
    rank lies between 1 and min(N - 1, d). It is k where k principal components have the same variance and the others
    none, and 0 where all samples are the same.
    """
    x = centred(x)
    variances = torch.linalg.eigvalsh(x @ x.mT).clamp(min=0)
    total = variances.sum(-1, keepdim=True)
    shares = variances / total.where(total > 0, 1.0)
    return torch.exp(-torch.xlogy(shares, shares).sum(-1)).where(total.squeeze(-1) > 0, 0.0)


def unit_length(x: Tensor) -> Tensor:
    """Samples scaled to Euclidean length 1; a zero sample, which has no direction, stays zero."""
    x = tensors.samples(x, "x")
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.where(norm > 0, 1.0)


def centred(x: Tensor) -> Tensor:
    """Samples less their mean.

    A sample that is the mean but for rounding becomes exactly zero: scaled to length 1, rounding would look like a
    state. So the embedding output of prompts that all end in the same token becomes zero altogether.
    """
    x = tensors.samples(x, "x")
    return _without_rounding(x - x.mean(-2, keepdim=True), x)


def without_largest_dimensions(x: Tensor, k: int) -> Tensor:
    """Samples with the ``k`` coordinates of the largest mean square set to zero (rogue dimensions, [TimkeyS21]_).

    The samples are not centred; k lies between 0 and d - 1.
    """
    x = tensors.samples(x, "x")
    at_least(0, k=k)
    if k >= x.shape[-1]:
        raise InputError(f"k must be between 0 and {x.shape[-1] - 1}, one below the number of dimensions, but is {k}.")
    largest = x.square().mean(-2, keepdim=True).topk(k, dim=-1).indices
    return x.scatter(-1, largest.expand(*x.shape[:-1], k), 0.0)


def without_largest_components(x: Tensor, k: int) -> Tensor:
    """Centred samples without their first ``k`` principal components (all but the top, [MuV18]_).

    Samples with no more components than that become zero.
    """
    at_least(0, k=k)
    centre = centred(x)
    scores = _scores(centre, k)
    return _without_rounding(centre - scores @ (scores.mT @ centre), centre)


def whitened(x: Tensor, components: int = 10) -> Tensor:
    r"""Scores of the samples on their first principal components, each scaled to variance 1.

    Whitening in all dimensions would tell nothing here: N samples in :math:`d \ge N` dimensions become N points at the
    same distance from each other, whatever they were. So only the largest components are kept, ``components`` of them
    and never more than one for every :data:`SAMPLES_PER_COMPONENT` samples; those without variance are left out. What
    lies in the other components is gone, which makes this PCA as much as whitening.

    Mean, components and variances are estimated on the samples themselves, not on others. They never see the targets,
    but they fit these samples: the N squared lengths add up to :math:`k (N - 1)` exactly, so for k near N the points
    are near to equidistant again. That is why the number of components is bounded by that of the samples.

    The k components kept give shape (..., N, k); scores on those without variance are zero, and the sign of each is
    arbitrary.
    """
    at_least(1, components=components)
    centre = centred(x)
    n = centre.shape[-2]
    return _scores(centre, min(components, max(1, n // SAMPLES_PER_COMPONENT))) * (n - 1) ** 0.5


def _scores(centre: Tensor, k: int) -> Tensor:
    """Scores on the first k principal components, shape (..., N, k), each of length 1, or 0 without variance."""
    # The N x N matrix of inner products has the scores as eigenvectors, and N is smaller than d here.
    squares, scores = torch.linalg.eigh(centre @ centre.mT)
    k = min(k, squares.shape[-1])
    squares, scores = squares.flip(-1)[..., :k], scores.flip(-1)[..., :k]
    has_variance = squares > (_ROUNDING * squares[..., :1]).clamp(min=0)
    return scores * has_variance.unsqueeze(-2)


def _without_rounding(x: Tensor, before: Tensor) -> Tensor:
    """``x`` with samples set to zero that are rounding beside the longest sample ``before`` a subtraction."""
    longest = torch.linalg.vector_norm(before, dim=-1).amax(-1)[..., None, None]
    return x.where(torch.linalg.vector_norm(x, dim=-1, keepdim=True) > _ROUNDING * longest, 0.0)
