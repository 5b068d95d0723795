r"""Probes: what a predictor that was fitted on some examples reads about the target from the states of others.

Their measure is V-information [XuZSSE20]_, the information that a family V of predictors can use:

.. math:: I_V(Z \to Y) = H_V(Y) - H_V(Y|Z),

with :math:`H_V(Y|Z)` the cross-entropy of the family's best predictor, and :math:`H_V(Y)` that of the best one that
ignores z, the label prior. Both are taken out of fold: every example is predicted by a probe that was fitted on others.
So V-information is never above :math:`I(Z;Y)` in expectation, and it comes out below 0 where a probe overfits. It can
rise with depth, since later blocks may bring information into the form that the family reads.

.. [XuZSSE20] Y. Xu, S. Zhao, J. Song, R. Stewart, S. Ermon. *A Theory of Usable Information under Computational
   Constraints.* ICLR 2020. arXiv:2002.10689.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedKFold, StratifiedShuffleSplit, cross_val_predict
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.audit.estimators import FOLDS, splits
from ridge_utils.errors import InputError, shown, valid_seed

Family = Literal["linear", "mlp"]
Vocabulary = Literal["closed", "open", "poor"]

#: A class needs so many examples to be probed, two in every fold, so that all folds train on it and test it.
RAREST = 2 * FOLDS
#: Where fewer than this share of the examples has a class that is probed, the targets are no classes.
LEAST_SHARE = 0.5
#: Without classes, so many different targets are needed to hold some out, and some more for the choice of a penalty.
LEAST_TARGETS = 2 * FOLDS

# Strengths of the penalty, from which each fit chooses; the strongest of each all but gives the null predictor.
_INVERSE_PENALTIES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
_DECAYS = [1.0, 10.0, 100.0, 1000.0]
_RIDGES = [1e2, 1e3, 1e4]
_SHARPNESS = [0.0, *np.geomspace(1, 300, 12)]
#: Leading principal components that the MLP reads, and its hidden units.
_COMPONENTS, _HIDDEN = 50, 32


@dataclass(frozen=True)
class Probe:
    """What a cross-validated probe reads from N examples, each predicted by a fit on others."""

    #: whether the likeliest target is the right one, shape (N,), bool
    correct: Tensor
    #: log-probability of the right target under the probe less that under the null predictor, nats, shape (N,), float64
    gain: Tensor
    #: minus the log-probability of the right target under the null predictor, nats, shape (N,), float64
    surprise: Tensor

    @property
    def v_information(self) -> float:
        """The mean gain, nats."""
        return self.gain.mean().item()

    @property
    def null_entropy(self) -> float:
        """H_V(Y), the most that there is to read, nats."""
        return self.surprise.mean().item()


def frequent(labels: Tensor) -> Tensor:
    """Which of N examples have a target that is frequent enough to be a class, :data:`RAREST` times or more."""
    _, inverse, counts = tensors.whole(labels, "labels").unique(return_inverse=True, return_counts=True)
    return counts[inverse] >= RAREST


def vocabulary(labels: Tensor) -> Vocabulary:
    """Which probes the targets allow.

    ``closed``: :data:`LEAST_SHARE` of the examples or more has a target that is :func:`frequent`, of 2 or more
    different ones; :func:`classify` applies. ``open``, as in natural tasks where nearly all targets are different: a
    classifier would have nothing to learn from, and :func:`embedding` takes its place. ``poor``: neither, for there are
    fewer than :data:`LEAST_TARGETS` different targets.
    """
    labels = tensors.whole(labels, "labels")
    kept = frequent(labels)
    if bool(kept.double().mean() >= LEAST_SHARE) and len(labels[kept].unique()) > 1:
        return "closed"
    return "open" if len(labels.unique()) >= LEAST_TARGETS else "poor"


def classify(states: Tensor, labels: Tensor, family: Family = "linear", seed: int = 0) -> Probe:
    """Predict a class, of labels of shape (N,), from standardised states, shape (N, d), out of fold.

    ``linear`` is multinomial logistic regression on the whole state, ``mlp`` a network with one hidden layer on its
    leading principal components. The strength of the penalty is chosen in each training fold, by the log-likelihood
    of a quarter of it. The null predictor is the training fold's label prior, to which both families fall back under a
    strong penalty. All labels must be :func:`frequent`.
    """
    states, labels = _paired(states, labels, "states")
    if family not in get_args(Family):
        raise InputError(f"family must be one of {', '.join(get_args(Family))}, but is {shown(family)}.")
    valid_seed(seed=seed)
    if not bool(frequent(labels).all()) or len(labels.unique()) < 2:
        raise InputError(
            f"A probe needs 2 or more classes of {RAREST} or more examples each: leave out the rarer ones, or use the "
            "probe of embeddings."
        )
    x, y = tensors.single(states, "states").numpy(), labels.numpy()
    if bool((x == x[0]).all()):
        family = "linear"  # equal states have no components to reduce to; this one then gives the label prior
    correct, gain, surprise = np.empty(len(y), dtype=bool), np.empty(len(y)), np.empty(len(y))
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
        model = _model(family, seed, min(_COMPONENTS, x.shape[1], len(train) // 2))
        with warnings.catch_warnings():
            # A weak penalty need not converge; it is then chosen only if it predicts well all the same.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[train], y[train])
        right = np.searchsorted(model.classes_, y[test])
        chances = np.maximum(model.predict_proba(x[test]).astype(np.float64), np.finfo(np.float64).tiny)
        prior = np.bincount(np.searchsorted(model.classes_, y[train])) / len(train)
        correct[test] = chances.argmax(1) == right
        surprise[test] = -np.log(prior[right])
        gain[test] = np.log(chances[np.arange(len(test)), right]) + surprise[test]
    return Probe(*map(torch.from_numpy, (correct, gain, surprise)))


def embedding(states: Tensor, targets: Tensor, labels: Tensor, seed: int = 0) -> Probe:
    r"""Predict the target's embedding from standardised states, and rank the held-out targets by it.

    For targets of an open vocabulary. Ridge regression gives :math:`\hat{y} = W z + b`, the targets being centred and
    of length 1, and the probability of each of the K different targets of the held-out fold is

    .. math:: p(y_j | z) \propto e^{s \, \hat{y} \cdot y_j}.

    The null predictor is :math:`s = 0`, every target equally likely. No target of the held-out fold occurs in training,
    so what is read is not the words that were seen. Penalty and sharpness s are chosen in each training fold, by
    cross-validation of the log-likelihood. A Gaussian density of the embedding would be no alternative: the information
    about a token could then exceed the entropy of the token.

    The states have shape (N, d), the embeddings of the targets (N, e); labels, (N,), say which target each is.
    """
    states, labels = _paired(states, labels, "states")
    targets, _ = _paired(targets, labels, "targets")
    x, ids = states.numpy(), labels.numpy()
    y = targets.numpy()
    y = y - y.mean(0)
    y = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    correct, gain, surprise = np.empty(len(x), dtype=bool), np.empty(len(x)), np.empty(len(x))
    for train, test in splits(len(x), seed, labels):
        train, test = train.numpy(), test.numpy()
        penalty, sharpness = _chosen(x[train], y[train], ids[train], seed)
        predicted = _regression(penalty).fit(x[train], y[train]).predict(x[test])
        chances, right = _ranked(predicted, y[test], ids[test], sharpness)
        correct[test] = chances.argmax(1) == right
        surprise[test] = np.log(chances.shape[1])
        gain[test] = chances[np.arange(len(test)), right] + surprise[test]
    return Probe(*map(torch.from_numpy, (correct, gain, surprise)))


def _model(family: Family, seed: int, components: int) -> Pipeline:
    held_out = StratifiedShuffleSplit(1, test_size=0.25, random_state=seed)
    if family == "linear":
        search = GridSearchCV(
            LogisticRegression(tol=1e-3, max_iter=300), {"C": _INVERSE_PENALTIES}, scoring="neg_log_loss", cv=held_out
        )
        return Pipeline([("scale", StandardScaler()), ("model", search)])
    # tanh, because with relu a change of rounding can end in another fit.
    network = MLPClassifier((_HIDDEN,), activation="tanh", solver="lbfgs", max_iter=50, random_state=seed)
    search = GridSearchCV(network, {"alpha": _DECAYS}, scoring="neg_log_loss", cv=held_out)
    reduce = PCA(components, svd_solver="full")
    return Pipeline([("scale", StandardScaler()), ("reduce", reduce), ("model", search)])


def _regression(penalty: float) -> Pipeline:
    return Pipeline([("scale", StandardScaler()), ("model", Ridge(penalty))])


def _chosen(x: np.ndarray, y: np.ndarray, ids: np.ndarray, seed: int) -> tuple[float, float]:
    """Penalty and sharpness under which targets that were not fitted on are likeliest."""
    folds = GroupKFold(min(FOLDS, len(np.unique(ids))), shuffle=True, random_state=seed)
    likelihoods = []
    for penalty in _RIDGES:
        predicted = cross_val_predict(_regression(penalty), x, y, groups=ids, cv=folds)
        for sharpness in _SHARPNESS:
            chances, right = _ranked(predicted, y, ids, sharpness)
            likelihoods.append((chances[np.arange(len(ids)), right].mean(), penalty, sharpness))
    _, penalty, sharpness = max(likelihoods)
    return penalty, sharpness


def _ranked(predicted: np.ndarray, y: np.ndarray, ids: np.ndarray, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the different targets, shape (N, K), and the column of each example's own."""
    _, first, right = np.unique(ids, return_index=True, return_inverse=True)
    scores = sharpness * predicted.reshape(len(ids), -1) @ y[first].T
    return scores - logsumexp(scores, axis=1, keepdims=True), right


def _paired(x: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    x, labels = tensors.samples(x, name, "(N, d)"), tensors.whole(labels, "labels")
    tensors.same_number(x, labels, (name, "labels"), (-2, -1))
    return x, labels
