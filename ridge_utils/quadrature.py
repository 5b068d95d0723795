r"""Entropy and information of more samples than an eigendecomposition can take: stochastic Lanczos quadrature.

The entropy :math:`H = \operatorname{tr} f(G)`, :math:`f(\lambda) = -\lambda \ln \lambda`, is split by an orthonormal
basis Q of the largest eigenvectors, found approximately [MeyerMMW21]_:

.. math:: H = \sum_i q_i^\top f(G) q_i + \mathbb{E}\, v^\top f(G) v, \qquad v = (I - Q Q^\top) z,

with random signs z. The first part leaves nothing to chance, the second has a small variance because its largest
eigenvalues are gone; neither needs Q to be exact. Each quadratic form is computed from a few steps of Lanczos' method
[GolubM10]_: since the even derivatives of f are negative and its odd ones positive, Gauss' quadrature is never below
it and that of Gauss and Radau, with a node at 0, never above. Most of the randomness that is left is that of
:math:`v^\top p(G) v` for a polynomial p of degree 2 near f, whose expectation is known from the traces of the matrix
and of its square, so it is taken out as a control variate.

An estimate comes with an error of two parts: half of what lies between the two quadratures, and Student's interval over
the random vectors.

Gram matrices are made in float32, in blocks of rows, and kept only where they fit into the memory that is allowed; a
matrix in float64 is never made.

.. [MeyerMMW21] R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff. *Hutch++: Optimal Stochastic Trace Estimation.*
   SOSA 2021. arXiv:2010.09649.
.. [GolubM10] G. H. Golub, G. Meurant. *Matrices, Moments and Quadrature with Applications.* Princeton, 2010.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from ridge_utils.errors import InputError

#: Bytes of one Gram matrix up to which it is kept; a larger one is made again for every product.
MEMORY = 2 * 2**30
#: The intervals of the errors cover so much.
CONFIDENCE = 0.95

#: Entries of the block of rows that is made at a time.
_BLOCK = 2**24
#: Products with the matrix, after the first, that turn random vectors into the basis.
_ITERATIONS = 2
#: The quadratures have met where what lies between them is below this share of the random error.
_MET = 0.1
#: How often that is looked at, in steps.
_LOOK = 5
#: Rounding of a trace of the matrix, or of its square, under float32.
_NOISE = 1e-6
#: A Lanczos vector shorter than this, beside eigenvalues of at most 1, is rounding of float32.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Settings:
    """How much work an estimate is given."""

    #: largest eigenvectors that are taken out of the random part, at least 1
    rank: int = 96
    #: random vectors, at least 2
    probes: int = 16
    #: most Lanczos steps, at least 2; fewer where the quadratures have met
    steps: int = 60
    #: of the random vectors
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """Numbers with their errors."""

    #: the estimates, nats, float64
    value: Tensor
    #: half of an interval around each that covers :data:`CONFIDENCE`, nats, of the same shape
    error: Tensor


class Gram:
    """The Gram matrix of a Gaussian kernel, of trace 1, known by its products with vectors.

    Args:
        parts: sets of N samples, shape (N, d) each; of several the matrix is the entrywise product of theirs.
        bandwidth: greater than 0, in the units of the (normalised) samples.
        normalize: scale each sample to length 1 first.
        memory: bytes up to which the matrix is kept.

    Raises:
        InputError: shapes that do not fit, a non-positive bandwidth, or a zero or infinite sample.
    """

    def __init__(
        self, parts: Sequence[Tensor], bandwidth: float = 1.0, normalize: bool = True, memory: int = MEMORY
    ) -> None:
        """Scale the samples, and make the matrix where it is to be kept."""
        if not bandwidth > 0:
            raise InputError(f"bandwidth must be greater than 0, but is {bandwidth}.")
        if any(part.ndim != 2 for part in parts) or len({len(part) for part in parts}) != 1 or len(parts[0]) < 2:
            raise InputError(
                "Samples must have shape (N, d) with the same N of 2 or more, but have shapes "
                f"{' and '.join(str(tuple(part.shape)) for part in parts)}."
            )
        self.n = len(parts[0])
        self._parts = [_scaled(part, normalize) / bandwidth for part in parts]
        self.device = self._parts[0].device
        self._height = max(1, min(self.n, _BLOCK // self.n))
        self._kept = list(self._blocks()) if 4 * self.n**2 <= memory else None

    @property
    def square_trace(self) -> float:
        """The trace of its square."""
        blocks = self._blocks() if self._kept is None else self._kept
        total = sum(
            (block.sum(dtype=torch.float64) * 2 + block.square().sum(dtype=torch.float64)).item() for block in blocks
        )
        return 1 + total / self.n**2

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with vectors of shape (N, k), float32."""
        blocks = self._blocks() if self._kept is None else self._kept
        return (torch.cat([block @ vectors for block in blocks]) + vectors.sum(0)) / self.n

    def _blocks(self) -> Iterator[Tensor]:
        """Rows of the kernel matrix less 1 everywhere, block by block, float32.

        Less 1, because the entries of states that all point the same way are near 1, and float32 would lose what tells
        them apart.
        """
        squares = [part.square().sum(1) for part in self._parts]
        for start in range(0, self.n, self._height):
            rows = slice(start, start + self._height)
            exponent = torch.zeros(len(self._parts[0][rows]), self.n, device=self._parts[0].device)
            for part, square in zip(self._parts, squares, strict=True):
                exponent.addmm_(part[rows], part.T).sub_(square / 2).sub_(square[rows, None] / 2)
            own = torch.arange(len(exponent), device=exponent.device)
            exponent[own, own + start] = 0
            yield exponent.clamp_(max=0).expm1_()


def entropy(gram: Gram, settings: Settings = Settings()) -> Estimate:
    r"""Matrix-based entropy of order 1, :math:`-\operatorname{tr} G \ln G`.

    Args:
        gram: the matrix.
        settings: how much work it is given.

    Returns:
        The estimate and its error, each of shape ().

    Raises:
        InputError: a setting out of range.
    """
    _check(settings)
    return _estimate([(1, _trace(gram, settings))])


def predictive_information(
    hidden: Tensor,
    targets: Tensor,
    *,
    bandwidth: float = 1.0,
    normalize: bool = True,
    settings: Settings = Settings(),
    memory: int = MEMORY,
) -> Estimate:
    r"""Predictive information of order 1 of every layer under a Gaussian kernel, in nats.

    The three entropies of a layer share their random vectors, so part of their random errors cancels.

    Args:
        hidden: hidden states at the last prompt token, shape (layers, N, d).
        targets: input-embedding rows of the target tokens, shape (N, e).
        bandwidth, normalize, memory: see :class:`Gram`.
        settings: how much work each entropy is given.

    Returns:
        Estimates and errors, each of shape (layers,).

    Raises:
        InputError: as :class:`Gram`, or a setting out of range.
    """
    _check(settings)
    if hidden.ndim != 3 or targets.ndim != 2 or hidden.shape[1] != targets.shape[0]:
        raise InputError(
            "hidden must have shape (layers, N, d) and targets (N, e) with the same N, but they have shapes "
            f"{tuple(hidden.shape)} and {tuple(targets.shape)}."
        )
    of_targets = _trace(Gram([targets], bandwidth, normalize, memory), settings)
    found = []
    for states in hidden:
        of_states = _trace(Gram([states], bandwidth, normalize, memory), settings)
        of_both = _trace(Gram([states, targets], bandwidth, normalize, memory), settings)
        found.append(_estimate([(1, of_states), (1, of_targets), (-1, of_both)]))
    return Estimate(torch.stack([one.value for one in found]), torch.stack([one.error for one in found]))


@dataclass(frozen=True)
class _Trace:
    """The parts of an entropy: a sum that is fixed, one value for each random vector, and the quadratures' errors."""

    fixed: Tensor
    random: Tensor
    gap: Tensor


def _trace(gram: Gram, settings: Settings) -> _Trace:
    generator = torch.Generator().manual_seed(settings.seed)
    device = gram.device
    signs = (2.0 * torch.randint(0, 2, (gram.n, settings.probes), generator=generator) - 1).to(device)
    rank = min(settings.rank, gram.n - 1)
    basis = gram @ torch.randn(gram.n, rank, generator=generator).to(device)
    for _ in range(_ITERATIONS):
        basis = gram @ torch.linalg.qr(basis).Q
    basis = torch.linalg.qr(basis).Q
    # Twice, for float32 leaves a rest the first time.
    for _ in range(2):
        signs = signs - basis @ (basis.T @ signs)
    forms = _quadratic_forms(gram, torch.cat([basis, signs], dim=1), settings)
    fixed, random = forms.half(slice(rank)), forms.half(slice(rank, None))
    # What is random in v'f(G)v is so in v'p(G)v too, and for a polynomial p of degree 2 the expectation is known.
    known = torch.tensor([gram.n, 1.0, gram.square_trace], dtype=torch.float64)
    known = known - fixed.moments.sum(0)
    coefficients = _fit(random)
    centred = random.middle - (random.moments - known) @ coefficients
    rounding = _NOISE * coefficients.abs().sum()
    return _Trace(fixed.middle.sum(), centred, fixed.gap.sum() + random.gap.mean() + rounding)


def _estimate(traces: Sequence[tuple[int, _Trace]]) -> Estimate:
    """Sum of traces with signs, whose random vectors are the same."""
    fixed = torch.stack([sign * trace.fixed for sign, trace in traces]).sum()
    random = torch.stack([sign * trace.random for sign, trace in traces]).sum(0)
    gap = torch.stack([trace.gap for _, trace in traces]).sum()
    student = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(random) - 1))
    return Estimate(fixed + random.mean(), gap + student * random.std() / len(random) ** 0.5)


@dataclass(frozen=True)
class _Forms:
    """Quadratic forms v'f(G)v of k vectors, and the measures that they come from."""

    #: by Gauss-Radau's and by Gauss' quadrature, shape (k,) each
    low: Tensor
    high: Tensor
    #: nodes and weights of Gauss' quadrature, shape (k, steps) each
    nodes: Tensor
    weights: Tensor

    @property
    def middle(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def gap(self) -> Tensor:
        return (self.high - self.low) / 2

    @property
    def moments(self) -> Tensor:
        """v'v, v'Gv and v'G^2v, in which the quadrature has no error; shape (k, 3)."""
        return (self.weights.unsqueeze(-1) * _powers(self.nodes)).sum(1)

    def half(self, which: slice) -> "_Forms":
        return _Forms(self.low[which], self.high[which], self.nodes[which], self.weights[which])


def _powers(x: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x, x.square()], -1)


def _fit(forms: _Forms) -> Tensor:
    """Coefficients of the polynomial of degree 2 that is nearest to f over the spectrum that the vectors see.

    Large coefficients are held back, for they would multiply the rounding of the traces.
    """
    root = forms.weights.clamp(min=0).sqrt().flatten()
    rounding = torch.eye(3, dtype=torch.float64) * _NOISE * len(forms.nodes) ** 0.5
    powers = torch.cat([root[:, None] * _powers(forms.nodes).flatten(0, 1), rounding])
    values = torch.cat([root * _f(forms.nodes).flatten(), torch.zeros(3, dtype=torch.float64)])
    return torch.linalg.lstsq(powers, values[:, None]).solution[:, 0]


def _quadratic_forms(gram: Gram, vectors: Tensor, settings: Settings) -> _Forms:
    norm = torch.linalg.vector_norm(vectors.double(), dim=0)
    now = (vectors / norm).float()
    before: list[Tensor] = []
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    steps = min(settings.steps, gram.n)
    for step in range(1, steps + 1):
        before.append(now)
        image = gram @ now
        diagonal.append((image.double() * now.double()).sum(0))
        # All of them, and twice, for float32 loses the orthogonality that Lanczos' method rests on.
        for _ in range(2):
            for old in before:
                image = image - old * (old * image).sum(0)
        length = torch.linalg.vector_norm(image.double(), dim=0)
        beside.append(length.where(length > _ROUNDING, 0.0))
        now = (image / length.clamp(min=_ROUNDING)).where(length > _ROUNDING, 0.0).float()
        if step % _LOOK == 0 or step == steps:
            forms = _forms(torch.stack(diagonal, -1).cpu(), torch.stack(beside, -1).cpu(), norm.square().cpu())
            random = forms.half(slice(-settings.probes, None))
            residue = random.middle - random.moments @ _fit(random)
            if forms.gap.sum() < _MET * residue.std() / settings.probes**0.5:
                break
    return forms


def _forms(diagonal: Tensor, beside: Tensor, square: Tensor) -> _Forms:
    """The quadratures from Lanczos' tridiagonal matrices; ``diagonal`` and ``beside`` have shape (k, steps)."""
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(beside[:, :-1], 1) + torch.diag_embed(beside[:, :-1], -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    weights = square[:, None] * vectors[:, 0].square()
    high = (weights * _f(nodes)).sum(-1)
    # One step more, whose diagonal entry puts a node at 0, the lower end of the spectrum.
    corner = (vectors[:, -1].square() / nodes.clamp(min=_ROUNDING**2)).sum(-1) * beside[:, -1].square()
    larger = torch.nn.functional.pad(matrix, (0, 1, 0, 1))
    larger[:, -1, -1] = corner
    larger[:, -1, -2] = larger[:, -2, -1] = beside[:, -1]
    more, vectors = torch.linalg.eigh(larger)
    low = square * (vectors[:, 0].square() * _f(more)).sum(-1)
    return _Forms(torch.minimum(low, high), torch.maximum(low, high), nodes, weights)


def _f(x: Tensor) -> Tensor:
    return -torch.xlogy(x.clamp(min=0), x.clamp(min=0))


def _scaled(x: Tensor, normalize: bool) -> Tensor:
    if not bool(x.isfinite().all()):
        raise InputError(f"A tensor of samples of shape {tuple(x.shape)} holds a NaN or an infinite entry.")
    x = x.double()
    if normalize:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        if bool((norm == 0).any()):
            where = int((norm[:, 0] == 0).nonzero()[0])
            raise InputError(f"Sample {where} is the zero vector, which has no direction: remove it.")
        x = x / norm
    # Distances do not change with the origin, and around the mean float32 loses least of them.
    return (x - x.mean(0)).float()


def _check(settings: Settings) -> None:
    if settings.probes < 2 or settings.rank < 1 or settings.steps < 2:
        raise InputError(
            "probes and steps must be at least 2 and rank at least 1, but are "
            f"{settings.probes}, {settings.steps} and {settings.rank}."
        )
