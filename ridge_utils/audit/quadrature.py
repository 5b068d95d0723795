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

An estimate comes with an error of three parts: half of what lies between the two quadratures, Student's interval over
the random vectors, and the rounding of products in float32.

Gram matrices are made in float32, in blocks of rows, and kept only where they fit into the memory that is allowed; a
matrix in float64 is never made. Targets are few tokens, so the entropy of theirs is that of a small matrix and exact.

.. [MeyerMMW21] R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff. *Hutch++: Optimal Stochastic Trace Estimation.*
   SOSA 2021. arXiv:2010.09649.
.. [GolubM10] G. H. Golub, G. Meurant. *Matrices, Moments and Quadrature with Applications.* Princeton, 2010.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.errors import InputError, at_least, of_type, valid_seed
from ridge_utils.kernels import Estimator, unit_rows

#: Bytes that Gram matrices may take; one that does not fit is made again for every product.
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
_LOOK = 2
#: Different samples up to which the others are taken as repetitions of them.
_FEW = 1500
#: Rounding of a trace of the matrix, or of its square, under float32.
_NOISE = 1e-6
#: Unit roundoff of float32.
_ROUNDOFF = 2.0**-24
#: A Lanczos vector shorter than this, beside eigenvalues of at most 1, is rounding of float32.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Settings:
    """How much work an estimate is given."""

    #: largest eigenvectors that are taken out of the random part, at least 1
    rank: int = 96
    #: random vectors, at least 2
    probes: int = 32
    #: most Lanczos steps, at least 2; fewer where the quadratures have met
    steps: int = 60
    #: of the random vectors
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        at_least(2, 10**6, probes=self.probes, steps=self.steps)
        at_least(1, 10**6, rank=self.rank)
        valid_seed(seed=self.seed)


@dataclass(frozen=True)
class Estimate:
    """Numbers with their errors."""

    #: the estimates, nats, float64
    value: Tensor
    #: half of an interval around each that covers :data:`CONFIDENCE`, nats, of the same shape
    error: Tensor


class Gram:
    """The Gram matrix of a Gaussian kernel, of trace 1, known by its products with vectors.

    Samples that occur more than once, as target tokens do, cost what their different values cost. The entrywise product
    of two such matrices, ``a * b``, is the Gram matrix of both variables together.

    Args:
        x: samples, shape (N, d).
        bandwidth: in the units of the samples, which are scaled to length 1 first where ``normalize``.
        memory: bytes that this matrix and its products with others may take; one that does not fit is made again
            whenever it is used.
    """

    def __init__(self, x: Tensor, bandwidth: float = 1.0, normalize: bool = True, memory: int = MEMORY) -> None:
        """Scale the samples, and make the matrix where it is to be kept."""
        Estimator(bandwidth=bandwidth, normalize=normalize)
        at_least(0, 2**63, memory=memory)
        x = tensors.samples(x, "x", "(N, d)")
        points = (unit_rows(x, "x") if normalize else x) / bandwidth
        different, labels = points.unique(dim=0, return_inverse=True)
        repeated = _is_repeated(len(different), len(x))
        self._hold(_Labelled.of(different, labels) if repeated else _Points(points), memory)

    def __mul__(self, other: "Gram") -> "Gram":
        """The Gram matrix of the pairs of samples."""
        if self.n != other.n:
            raise InputError(f"Both must be over the same samples, but they are over {self.n} and {other.n}.")
        product = object.__new__(Gram)
        both = _Labelled.both(self._source, other._source)
        product._hold(both or _Product(self, other), self._left)
        return product

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with vectors of shape (N, k), float32."""
        return (torch.cat([block @ vectors for block in self.blocks()]) + vectors.sum(0)) / self.n

    def blocks(self) -> Iterable[Tensor]:
        """Rows of the kernel matrix less 1 everywhere, block by block, float32.

        Less 1, because the entries of states that all point the same way are near 1, and float32 would lose what tells
        them apart.
        """
        return self._source.blocks() if self._kept is None else self._kept

    @property
    def square_trace(self) -> float:
        """The trace of its square."""
        total = 0.0
        for block in self.blocks():
            squares = torch.linalg.vector_norm(block, dim=1).double().square()
            total += (squares + 2 * block.sum(1).double()).sum().item()
        return 1 + total / self.n**2

    @property
    def exact_entropy(self) -> Tensor | None:
        """Its entropy by the eigenvalues, where repeated samples leave few that are not 0; else None."""
        return self._source.entropy() if isinstance(self._source, _Labelled) else None

    def _hold(self, source: "_Points | _Labelled | _Product", memory: int) -> None:
        self._source = source
        self.n = source.n
        self.device = source.device
        is_kept = not isinstance(source, _Labelled) and 4 * self.n**2 <= memory
        self._kept = list(source.blocks()) if is_kept else None
        self._left = memory - 4 * self.n**2 * is_kept


class _Points:
    """A kernel matrix made of its samples."""

    def __init__(self, points: Tensor) -> None:
        # Distances do not change with the origin, and around the mean float32 loses least of them.
        self._points = tensors.single(points - points.mean(0), "x over its bandwidth")
        self._half_squares = self._points.square().sum(1) / 2
        self.n = len(points)
        self.device = points.device

    def blocks(self) -> Iterator[Tensor]:
        for rows in _blocks_of_rows(self.n):
            exponent = torch.addmm(-self._half_squares, self._points[rows], self._points.T)
            exponent.sub_(self._half_squares[rows, None])
            row = torch.arange(len(exponent), device=self.device)
            exponent[row, row + rows.start] = 0  # of a sample with itself
            yield exponent.clamp_(max=0).expm1_()


class _Labelled:
    """A kernel matrix of samples that are repeated: ``table`` between the different ones, and which each sample is."""

    def __init__(self, table: Tensor, labels: Tensor) -> None:
        self._table = table
        self._labels = labels
        self.n = len(labels)
        self.device = labels.device

    @staticmethod
    def of(points: Tensor, labels: Tensor) -> "_Labelled":
        return _Labelled((torch.cdist(points, points).square() / -2).expm1(), labels)

    @staticmethod
    def both(a: object, b: object) -> "_Labelled | None":
        """Of pairs of samples, where these are repeated too."""
        if not isinstance(a, _Labelled) or not isinstance(b, _Labelled):
            return None
        pairs, labels = torch.stack([a._labels, b._labels]).unique(dim=1, return_inverse=True)
        if not _is_repeated(pairs.shape[1], a.n):
            return None
        first, second = (one._table[index][:, index] for one, index in zip((a, b), pairs, strict=True))
        return _Labelled(first + second + first * second, labels)

    def blocks(self) -> Iterator[Tensor]:
        columns = self._table.float()[:, self._labels]
        for rows in _blocks_of_rows(self.n):
            yield columns[self._labels[rows]]

    def entropy(self) -> Tensor:
        # With multiplicities C on a diagonal, the eigenvalues that are not 0 are those of C^1/2 K C^1/2 / N.
        root = torch.bincount(self._labels).double().sqrt()
        return _f(torch.linalg.eigvalsh(root[:, None] * (1 + self._table) * root / self.n)).sum().cpu()


class _Product:
    """The entrywise product of two kernel matrices."""

    def __init__(self, a: Gram, b: Gram) -> None:
        self._factors = (a, b)
        self.n = a.n
        self.device = a.device

    def blocks(self) -> Iterator[Tensor]:
        for a, b in zip(*(factor.blocks() for factor in self._factors), strict=True):
            # (1 + a) (1 + b) less 1
            yield torch.addcmul(a, a, b).add_(b)


def _is_repeated(different: int, n: int) -> bool:
    return different <= min(_FEW, n // 2)


def _blocks_of_rows(n: int) -> Iterator[slice]:
    height = max(1, min(n, _BLOCK // n))
    return (slice(start, start + height) for start in range(0, n, height))


def entropy(gram: Gram, settings: Settings = Settings()) -> Estimate:
    r"""Matrix-based entropy of order 1, :math:`-\operatorname{tr} G \ln G`, of shape ()."""
    of_type(Settings, settings=settings)
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

    The three entropies of a layer share their random vectors, so part of their random errors cancels. Each is given the
    work of ``settings``; ``bandwidth``, ``normalize`` and ``memory`` are those of :class:`Gram`.

    Args:
        hidden: hidden states at the last prompt token, shape (layers, N, d).
        targets: input-embedding rows of the target tokens, shape (N, e).
    """
    of_type(Settings, settings=settings)
    hidden, targets = tensors.shaped(hidden, "hidden", "(layers, N, d)"), tensors.samples(targets, "targets", "(N, e)")
    tensors.same_number(hidden, targets, ("hidden", "targets"))
    gram_y = Gram(targets, bandwidth, normalize, memory)
    of_targets = _trace(gram_y, settings)
    estimates = []
    for layer, states in enumerate(hidden):
        gram_z = Gram(tensors.samples(states, f"hidden[{layer}]"), bandwidth, normalize, memory)
        parts = [(1, _trace(gram_z, settings)), (1, of_targets), (-1, _trace(gram_z * gram_y, settings))]
        estimates.append(_estimate(parts))
    return Estimate(torch.stack([e.value for e in estimates]), torch.stack([e.error for e in estimates]))


@dataclass(frozen=True)
class _Trace:
    """The parts of an entropy: a sum that is fixed, one value for each random vector, and the quadratures' errors."""

    fixed: Tensor
    random: Tensor
    gap: Tensor


def _trace(gram: Gram, settings: Settings) -> _Trace:
    if (exact := gram.exact_entropy) is not None:
        return _Trace(exact, torch.zeros(settings.probes, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    generator = torch.Generator().manual_seed(settings.seed)
    device = gram.device
    signs = (2.0 * torch.randint(0, 2, (gram.n, settings.probes), generator=generator) - 1).to(device)
    rank = min(settings.rank, gram.n - 1)
    basis = gram @ torch.randn(gram.n, rank, generator=generator).to(device)
    for _ in range(_ITERATIONS):
        basis = gram @ torch.linalg.qr(basis).Q
    basis = torch.linalg.qr(basis).Q
    # Turned towards the eigenvectors, one by one, they need the fewest steps below.
    image = gram @ basis
    turn = torch.linalg.eigh((basis.T @ image).double()).eigenvectors.float()
    basis, image = basis @ turn, image @ turn
    # Twice, for float32 leaves a rest the first time.
    for _ in range(2):
        signs = signs - basis @ (basis.T @ signs)
    image = torch.cat([image, gram @ signs], dim=1)
    forms = _quadratic_forms(gram, torch.cat([basis, signs], dim=1), image, settings)
    fixed, random = forms.half(slice(rank)), forms.half(slice(rank, None))
    # What is random in v'f(G)v is so in v'p(G)v too, and for a polynomial p of degree 2 the expectation is known.
    known = torch.tensor([gram.n, 1.0, gram.square_trace], dtype=torch.float64)
    known = known - fixed.moments.sum(0)
    coefficients = _fit(random)
    centred = random.middle - (random.moments - known) @ coefficients
    # Products in float32 move an eigenvalue by about its unit roundoff, and the mean one is 1 / N, where |f'| is about
    # ln N; over N eigenvalues, moved either way, that adds up as their square root.
    rounding = _NOISE * coefficients.abs().sum() + _ROUNDOFF * gram.n**0.5 * math.log(gram.n)
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

    def put(self, index: Tensor, of_these: "_Forms") -> None:
        """Replace the forms at ``index``."""
        self.low[index], self.high[index] = of_these.low, of_these.high
        self.nodes[index, : of_these.nodes.shape[1]] = of_these.nodes
        self.weights[index, : of_these.weights.shape[1]] = of_these.weights

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


def _quadratic_forms(gram: Gram, vectors: Tensor, image: Tensor, settings: Settings) -> _Forms:
    """Those of ``vectors``, whose products with the matrix are ``image``; the last of them are the random ones.

    Most of the work is the fixed vectors', and they, near eigenvectors, need few steps: each is left out once its two
    quadratures have met.
    """
    norm = torch.linalg.vector_norm(vectors.double(), dim=0)
    square = norm.square().cpu()
    now, image = (vectors / norm).float(), (image / norm).float()
    steps = min(settings.steps, gram.n)
    count, fixed = len(norm), len(norm) - settings.probes
    forms = _Forms(*(torch.zeros(count, *shape, dtype=torch.float64) for shape in [(), (), (steps,), (steps,)]))
    going = torch.arange(count)
    before: list[Tensor] = []
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(1, steps + 1):
        before.append(now)
        diagonal.append((image.double() * now.double()).sum(0).cpu())
        # All of them, and twice, for float32 loses the orthogonality that Lanczos' method rests on.
        for _ in range(2):
            for old in before:
                image = image - old * (old * image).sum(0)
        length = torch.linalg.vector_norm(image.double(), dim=0)
        beside.append(length.where(length > _ROUNDING, 0.0).cpu())
        now = (image / length.clamp(min=_ROUNDING)).where(length > _ROUNDING, 0.0).float()
        if step % _LOOK == 0 or step == steps:
            forms.put(going, _forms(torch.stack(diagonal, -1), torch.stack(beside, -1), square[going]))
            random = forms.half(slice(fixed, None))
            residue = random.middle - random.moments @ _fit(random)
            enough = _MET * residue.std() / settings.probes**0.5
            is_open = torch.cat(
                [forms.gap[:fixed] * fixed > enough, (random.gap.mean() > enough).expand(settings.probes)]
            )
            stays = is_open[going]
            if not bool(stays.any()):
                break
            if not bool(stays.all()):
                going, diagonal, beside = going[stays], [x[stays] for x in diagonal], [x[stays] for x in beside]
                before, now = [x[:, stays.to(x.device)] for x in before], now[:, stays.to(now.device)]
        if step < steps:
            image = gram @ now
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
