r"""Information of order 2 without the bias that the number of samples brings, with its exact null and its interval.

The order-2 estimate (:func:`ridge_utils.information.mutual_information` with ``alpha=2``) is made of means over all
:math:`N^2` pairs of samples, :math:`N` of which pair a sample with itself. With :math:`A_{ij} = k(x_i, x_j)^2`,
:math:`B_{ij} = k(y_i, y_j)^2`, and :math:`a, b, c` the means of :math:`A`, :math:`B` and :math:`A \circ B` over the
pairs :math:`i \ne j` alone, it is

.. math:: I_u = \ln \frac{c}{a\,b}.

Each mean is a U-statistic and has no bias; the jackknife takes out what the logarithm leaves. Over all pairings of
:math:`x` with :math:`y` the mean of :math:`c` is exactly :math:`a\,b`, and its variance is Mantel's [Mantel1967]_.
There are no eigenvalues and no shuffles, and no N x N matrix is held: the sums of its rows are enough.

.. [Mantel1967] N. Mantel. *The Detection of Disease Clustering and a Generalized Regression Approach.* Cancer Research
   27(2), 1967.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from scipy import stats
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.errors import InputError, of_type, within
from ridge_utils.kernels import PAPER, Estimator, median_bandwidth, unit_rows

#: The paper's kernel, at the order that has an unbiased form.
ORDER_TWO = replace(PAPER, alpha=2.0)

#: Rows of a kernel matrix that are held at a time: they stay in the processor's cache.
_STRIP = 128
#: Numbers of the layers' states that are held at a time, as float64.
_HELD = 2**27


@dataclass(frozen=True)
class Estimate:
    """Numbers with the standard errors of their jackknife, both of one shape and float64."""

    value: Tensor
    standard_error: Tensor
    #: samples behind each
    n: int

    def interval(self, level: float = 0.95) -> Tensor:
        """Ends of the interval by Student's t with n - 1 degrees of freedom, shape (..., 2)."""
        within(1e-9, 1 - 1e-9, level=level)
        reach = stats.t.isf((1 - level) / 2, self.n - 1) * self.standard_error
        return torch.stack([self.value - reach, self.value + reach], -1)


@dataclass(frozen=True)
class UnbiasedInformation:
    r"""Order-2 information of L layers with one target, in nats, and all that follows from the same sums over pairs."""

    #: sums over the other samples j of :math:`A_{ij}`, :math:`B_{ij}` and :math:`A_{ij} B_{ij}`, shape (3, N, L)
    sums: Tensor
    #: sums over all pairs of :math:`A_{ij}^2` and :math:`B_{ij}^2`, shape (2, L)
    squares: Tensor

    @property
    def n(self) -> int:
        """Number of samples N."""
        return self.sums.shape[1]

    @cached_property
    def means(self) -> Tensor:
        """The means a, b and c over pairs of different samples, shape (3, L)."""
        return self.sums.sum(1) / (self.n * (self.n - 1))

    def estimate(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Estimate:
        """Any smooth function of a, b and c, each of shape (..., L), without its bias of order 1/N.

        The N values that leave one sample out follow from the sums: each pair has two places in them.
        """
        n, sums = self.n, self.sums
        left_out = (sums.sum(1, keepdim=True) - 2 * sums) / ((n - 1) * (n - 2))
        value, others = function(*self.means), function(*left_out)
        mean = others.mean(0)
        return Estimate(n * value - (n - 1) * mean, ((n - 1) / n * (others - mean).square().sum(0)).sqrt(), n)

    @cached_property
    def information(self) -> Estimate:
        r""":math:`I_u` of every layer, shape (L,)."""
        return self.estimate(_log_ratio)

    def difference(self, first: int, second: int) -> Estimate:
        """Information of layer ``first`` less that of ``second``, with the error of the difference, shape ()."""
        return self.estimate(lambda a, b, c: (values := _log_ratio(a, b, c))[..., first] - values[..., second])

    @cached_property
    def z(self) -> Tensor:
        r"""How many standard deviations of its null c lies above :math:`a\,b`, shape (L,).

        Over all N! pairings of x with y the mean of c is :math:`a\,b`. With S the sum of squares and R that of squared
        row sums, of A less a and of B less b off the diagonal, and :math:`D = R - S`, its variance is exactly

        .. math::

           \frac{1}{N^2 (N-1)^2} \Bigl[\frac{2 S_A S_B}{N(N-1)} + \frac{4 D_A D_B}{N(N-1)(N-2)}
           + \frac{4 (S_A + 2 D_A)(S_B + 2 D_B)}{N(N-1)(N-2)(N-3)}\Bigr].
        """
        n, (a, b, c) = self.n, self.means
        pairs = n * (n - 1)
        s_a, s_b = self._squares
        d_a, d_b = ((self.sums[i] - (n - 1) * self.means[i]).square().sum(0) - s for i, s in ((0, s_a), (1, s_b)))
        variance = 2 * s_a * s_b + 4 * d_a * d_b / (n - 2)
        variance = variance + 4 * (s_a + 2 * d_a) * (s_b + 2 * d_b) / ((n - 2) * (n - 3))
        return (c - a * b) / (variance / pairs**3).clamp(min=0).sqrt()

    @property
    def p(self) -> Tensor:
        """Chance of a z as large where x says nothing about y, by the normal tail, shape (L,).

        The null's own tail is longer: read a small p as its order of magnitude, and shuffle where more is asked.
        """
        return torch.from_numpy(stats.norm.sf(self.z.cpu().numpy()))

    @cached_property
    def correlation(self) -> Tensor:
        r"""Mantel's r, the correlation of A and B over pairs, free of the scale of both; shape (L,)."""
        a, b, c = self.means
        s_a, s_b = self._squares
        return self.n * (self.n - 1) * (c - a * b) / (s_a * s_b).sqrt()

    @cached_property
    def alignment(self) -> Tensor:
        """Unbiased alignment of A and B, both U-centred, between -1 and 1 (Song et al. 2012), shape (L,)."""
        n, (row_a, row_b) = self.n, self.sums[:2]
        total_ab, (total_aa, total_bb) = self.sums[2].sum(0), self.squares

        def centred(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
            sides = left.sum(0) * right.sum(0) / ((n - 1) * (n - 2))
            return product + sides - 2 / (n - 2) * (left * right).sum(0)

        both = centred(total_ab, row_a, row_b)
        return both / (centred(total_aa, row_a, row_a) * centred(total_bb, row_b, row_b)).sqrt()

    @cached_property
    def plug_in(self) -> Estimate:
        r"""The order-2 estimate at this N, :math:`\ln f(c) / (f(a) f(b))`, :math:`f(t) = t + (1 - t) / N`.

        Its error is that of the estimate as it is, bias included: the jackknife corrects nothing here.
        """
        estimate = self.estimate(self._plug_in)
        return replace(estimate, value=self._plug_in(*self.means))

    @cached_property
    def plug_in_null(self) -> Tensor:
        r"""What the order-2 estimate gives at this N where x says nothing about y, in closed form, shape (L,).

        :math:`\ln [1 + e (1 - e) (1 - a)(1 - b) / (f(a) f(b))]`, :math:`e = 1/N`: the estimate at the mean of c.
        """
        a, b, _ = self.means
        return self._plug_in(a, b, a * b)

    @cached_property
    def bias_share(self) -> Estimate:
        """Share of the order-2 estimate that is its null, of every layer, shape (L,)."""
        return self.estimate(lambda a, b, c: self._plug_in(a, b, a * b) / self._plug_in(a, b, c))

    def _plug_in(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        a, b, c = (mean + (1 - mean) / self.n for mean in (a, b, c))
        return _log_ratio(a, b, c)

    @cached_property
    def _squares(self) -> tuple[Tensor, Tensor]:
        """Sums of squares of A less a and of B less b, off the diagonal."""
        pairs = self.n * (self.n - 1)
        return tuple(self.squares - pairs * self.means[:2].square())


def unbiased_information(
    x: Tensor, y: Tensor, estimator: Estimator = ORDER_TWO, *, products: torch.dtype = torch.float64
) -> UnbiasedInformation:
    """Order-2 information of x with y without bias, its null and its errors, from one pass over the pairs.

    Time is that of one matrix product of the samples with themselves, memory a strip of it.

    Args:
        x: samples of shape (N, d), or of L layers, shape (L, N, d).
        y: the samples that they are paired with, shape (N, e); equal ones are exactly alike.
        estimator: a Gaussian or Laplacian kernel, with ``alpha=2``.
        products: ``torch.float32`` computes the kernels in single precision, about twice as fast; at bandwidth 1 the
            result then has an error of about 1e-7. Sums are float64 either way.
    """
    x = tensors.shaped(x, "x", least=4)
    if x.ndim > 3:
        raise InputError(f"x must have shape (N, d) or (L, N, d), but has shape {tuple(x.shape)}.")
    y = tensors.samples(y, "y", "(N, e)", 4)
    tensors.same_number(x, y, ("x", "y"))
    of_type(Estimator, estimator=estimator)
    if estimator.kernel not in ("gaussian", "laplacian") or estimator.alpha != 2:
        raise InputError(
            "Only the Gaussian and the Laplacian kernel at order 2 have an unbiased form, but estimator has "
            f"{estimator.kernel} and alpha={estimator.alpha:g}: use Estimator(alpha=2)."
        )
    of_type(torch.dtype, products=products)
    if products not in (torch.float64, torch.float32):
        raise InputError(f"products must be torch.float64 or torch.float32, but is {products}.")
    layers = x if x.ndim == 3 else x[None]
    n = len(y)
    sums = torch.zeros(3, len(layers), n, dtype=torch.float64, device=y.device)
    squares = torch.zeros(2, len(layers), dtype=torch.float64, device=y.device)
    kernel_y = _SquaredKernel(y, "y", estimator, products)
    at_a_time = max(1, _HELD // layers[0].numel())
    for first in range(0, len(layers), at_a_time):
        part = range(first, min(first + at_a_time, len(layers)))
        kernels_x = [_SquaredKernel(layers[layer], f"x[{layer}]", estimator, products) for layer in part]
        for start in range(0, n, _STRIP):
            b = kernel_y.strip(start)
            _add(sums[1, first : part.stop], b, start)
            squares[1, first : part.stop] += _square(b)
            for layer, kernel_x in zip(part, kernels_x, strict=True):
                a = kernel_x.strip(start)
                _add(sums[0, layer], a, start)
                squares[0, layer] += _square(a)
                _add(sums[2, layer], a.mul_(b), start)
    if not bool((sums.sum(-1) > 0).all()):
        raise InputError(
            f"With bandwidth {estimator.bandwidth} no two samples of x or of y are alike: choose a larger bandwidth."
        )
    return UnbiasedInformation(sums.mT, squares)


def ridge_fall(
    hidden: Tensor, targets: Tensor, estimator: Estimator = ORDER_TWO, *, seed: int = 0
) -> tuple[list[int], Estimate]:
    """Information of the layer that has most of it less that of the last layer, with the choice paid for.

    The layer is chosen on one half of the samples and the fall is measured on the other, then the other way round: a
    layer that is the largest by chance is not the largest again. Negative where the last layer has most.

    Args:
        hidden: states of shape (L, N, d), L of 2 or more; the last is not chosen.
        targets: shape (N, e).
        seed: of the halves.

    Returns:
        The two layers that were chosen, and the mean of the two falls, shape ().
    """
    hidden = tensors.shaped(hidden, "hidden", "(L, N, d)", least=8)
    targets = tensors.samples(targets, "targets", "(N, e)", least=8)
    tensors.same_number(hidden, targets, ("hidden", "targets"))
    if len(hidden) < 2:
        raise InputError("hidden must hold 2 layers or more, one of which is not the last.")
    for layer, states in enumerate(hidden):
        tensors.samples(states, f"hidden[{layer}]")
    order = torch.randperm(len(targets), generator=tensors.generator(seed)).to(targets.device)
    halves = [unbiased_information(hidden[:, half], targets[half], estimator) for half in order.chunk(2)]
    chosen = [int(half.information.value[:-1].argmax()) for half in halves]
    falls = [half.difference(layer, -1) for half, layer in zip(halves, reversed(chosen), strict=True)]
    value = torch.stack([fall.value for fall in falls]).mean(0)
    error = torch.stack([fall.standard_error for fall in falls]).square().sum(0).sqrt() / 2
    return chosen, Estimate(value, error, len(targets))


def _log_ratio(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (c / (a * b)).log()


class _SquaredKernel:
    """The squared kernel of one set of samples, in strips right of the diagonal."""

    def __init__(self, x: Tensor, name: str, estimator: Estimator, dtype: torch.dtype) -> None:
        x = tensors.samples(x, name, "(N, d)")
        if estimator.normalize:
            x = unit_rows(x, name)
        scale = median_bandwidth(x) if estimator.bandwidth == "median" else estimator.bandwidth
        self.gaussian = estimator.kernel == "gaussian"
        # One matrix product gives minus the squared distances, over the bandwidth's square.
        x = x / scale
        squares = x.square().sum(-1, keepdim=True)
        ones = torch.ones_like(squares)
        self.rounding = 64 * torch.finfo(dtype).eps * float(squares.max())
        self.left = torch.cat([2 * x, -squares, ones], -1).to(dtype)
        self.right = torch.cat([x, ones, -squares], -1).to(dtype)

    def strip(self, start: int) -> Tensor:
        """:data:`_STRIP` rows from ``start`` on, columns from there to the end, the diagonal 0."""
        exponent = (self.left[start : start + _STRIP] @ self.right[start:].mT).clamp_(max=0)
        if not self.gaussian:
            # Equal samples are 1e-8 apart for the square root of rounding.
            exponent[exponent > -self.rounding] = 0
            exponent.neg_().sqrt_().mul_(-2)
        kernel = exponent.exp_()
        kernel.diagonal().zero_()
        return kernel


def _add(sums: Tensor, strip: Tensor, start: int) -> None:
    """Add a strip right of the diagonal, and its mirror image below it, to sums of rows, shape (..., N)."""
    end = start + len(strip)
    sums[..., start:end] += strip.sum(1, dtype=torch.float64)
    sums[..., end:] += strip[:, len(strip) :].sum(0, dtype=torch.float64)


def _square(strip: Tensor) -> Tensor:
    """Sum of squares of a strip and of its mirror image."""
    block, right = strip[:, : len(strip)], strip[:, len(strip) :]
    return (
        torch.linalg.vector_norm(block, dtype=torch.float64) ** 2
        + 2 * torch.linalg.vector_norm(right, dtype=torch.float64) ** 2
    )
