"""Every number of the evaluation, defined once: pure functions of tensors. No model, no file, no global random state.

Shapes: N images or pairs, M captions, K classes, D feature width, Q queries. Notable:

- Rows are L2-normalised inside each function, so that a metric of directions never sees a norm by accident.
- Scalars come back in the type of the features (fp64 in, fp64 out); sums over many terms are taken in fp64.
- What would need an N x N matrix is done block by block, in bounded memory and without approximation.
- A candidate's place among equal scores is drawn by lot, and the expected hit of that lot is reported in closed form,
  so that a model that says the same of everything scores chance. Candidates with equal features get equal scores by
  construction: a matrix product may round the same dot product differently in different columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from math import exp, log
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

BLOCK_ELEMENTS = 2**24  # scores held at a time: 64 MB in fp32


def _unit_rows(features: torch.Tensor, name: str, minimum: int = 1) -> torch.Tensor:
    """Return `features` [N, D] detached, at least fp32, with unit rows; ValueError for another shape or NaN."""
    if features.ndim != 2 or len(features) < minimum or features.shape[1] == 0 or not features.is_floating_point():
        raise ValueError(
            f"{name} must be floating point [N, D] with N >= {minimum}, got {features.dtype} {list(features.shape)}"
        )
    features = features.detach()
    unit = F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)
    if unit.sum().isnan():  # compares with nothing, and so would rank first
        raise ValueError(f"{name}: {int(unit.isnan().any(1).sum())} of {len(unit)} rows are not finite")
    return unit


def _unit_pairs(
    image_features: torch.Tensor, text_features: torch.Tensor, minimum: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides of N pairs with unit rows; ValueError unless they have one shape."""
    if image_features.shape != text_features.shape:
        raise ValueError(
            "pairs need image_features and text_features of one shape [N, D], got "
            f"{list(image_features.shape)} and {list(text_features.shape)}"
        )
    return (
        _unit_rows(image_features, "image_features", minimum),
        _unit_rows(text_features, "text_features", minimum),
    )


def _row_blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Yield slices over the rows of a [num_rows, num_columns] matrix, of at most BLOCK_ELEMENTS elements each."""
    step = max(1, BLOCK_ELEMENTS // max(1, num_columns))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


# ---- the modality gap, on N pairs ----


def centroid_distance(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Distance between the mean image and the mean text direction: ‖mean(f̂) − mean(ĝ)‖, in [0, 2].

    Source: Liang et al., "Mind the Gap", NeurIPS 2022 (arXiv 2203.02053), the norm of their Δ_gap.

    Args:
        image_features: [N, D].
        text_features: [N, D].

    Raises:
        ValueError: The shapes differ or are not [N, D].

    >>> centroid_distance(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    tensor(1.4142)
    """
    return _gap_vector(image_features, text_features).norm()


def centroid_floor(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Centroid distance that two samples of one and the same distribution would have: (tr C_x/N + tr C_y/M)^½.

    The root mean square of what the choice of the samples alone puts between two means; a centroid distance near it is
    none. C are the covariances of the directions, with N − 1 and M − 1.

    Args:
        image_features: [N, D], N >= 2.
        text_features: [M, D], M >= 2.
    """
    sides = (_unit_rows(image_features, "image_features", 2), _unit_rows(text_features, "text_features", 2))
    squares = [side.var(0).sum() / len(side) for side in sides]
    return (squares[0] + squares[1]).sqrt()


def centroid_mse(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Measure `centroid_distance` as a mean square over dimensions, in 10⁻³: 1000 · ‖mean(f̂) − mean(ĝ)‖² / D.

    Source: the "modality gap" of CLIP-Refine (arXiv 2504.12717), whose tables print it without the unit.
    """
    return 1000 * _gap_vector(image_features, text_features).square().mean()


def _gap_vector(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Δ = mean(f̂) − mean(ĝ), [D]."""
    image, text = _unit_pairs(image_features, text_features)
    return image.mean(0) - text.mean(0)


def gap_concentration(image_features: torch.Tensor, text_features: torch.Tensor, *, top: int) -> torch.Tensor:
    """Share of the squared centroid distance that lies in its `top` largest dimensions: Σ_top Δ_k² / Σ_k Δ_k².

    Near 1 for a small `top`: a few dimensions carry the gap. Source: the observation of Schrodi et al., "Two Effects,
    One Trigger", ICLR 2025 (arXiv 2404.07983). 0 where there is no gap at all.
    """
    squares = _gap_vector(image_features, text_features).square()
    total = squares.sum()
    return squares.topk(min(top, len(squares))).values.sum() / total if total > 0 else total


def alignment(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Mean squared distance within pairs: mean ‖f̂_i − ĝ_i‖² = 2 − 2·mean cos, in [0, 4].

    Source: Wang & Isola, ICML 2020 (arXiv 2005.10242), their L_align with exponent 2.

    >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor(2.)
    """
    image, text = _unit_pairs(image_features, text_features)
    return (image - text).square().sum(1).mean()


def pair_cosine(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Mean cosine within pairs: mean f̂_i · ĝ_i, in [-1, 1]."""
    image, text = _unit_pairs(image_features, text_features)
    return (image * text).sum(1).mean()


def uniformity(features: torch.Tensor) -> torch.Tensor:
    """Measure how evenly directions fill the sphere: log mean over pairs i < j of exp(−2 ‖x_i − x_j‖²), at most 0.

    Lower is more uniform. Of one modality, or of both joined (`torch.cat`). Source: Wang & Isola, ICML 2020
    (arXiv 2005.10242), t = 2; as there the logarithm is part of it.

    Args:
        features: [N, D], N >= 2.

    >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # one pair at distance 2
    tensor(-8.)
    """
    unit = _unit_rows(features, "features", minimum=2)
    return _log_mean(_kernel_sum(unit), math.comb(len(unit), 2), unit)


def cross_modal_uniformity(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Uniformity between the modalities: log mean over i ≠ j of exp(−2 ‖f̂_i − ĝ_j‖²).

    Source: Fahim et al., "It's Not a Modality Gap" (arXiv 2405.18570).
    """
    image, text = _unit_pairs(image_features, text_features, minimum=2)
    return _log_mean(_kernel_sums_between(image, text)[0], len(image) * (len(image) - 1), image)


def uniformities(image_features: torch.Tensor, text_features: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return `uniformity` of both modalities joined, of each, and between them, from one pass over each kind of pair.

    Args:
        image_features: [N, D], N >= 2.
        text_features: [N, D].

    Returns:
        `uniformity`, `uniformity_image`, `uniformity_text` and `uniformity_cross`.
    """
    image, text = _unit_pairs(image_features, text_features, minimum=2)
    of_image, of_text, (across, paired) = _kernel_sum(image), _kernel_sum(text), _kernel_sums_between(image, text)
    count, pairs = len(image), math.comb(len(image), 2)
    return {
        "uniformity": _log_mean(of_image + of_text + across + paired, math.comb(2 * count, 2), image),
        "uniformity_image": _log_mean(of_image, pairs, image),
        "uniformity_text": _log_mean(of_text, pairs, image),
        "uniformity_cross": _log_mean(across, 2 * pairs, image),
    }


def _log_mean(total: torch.Tensor, count: int, like: torch.Tensor) -> torch.Tensor:
    return (total / count).log().to(like.dtype)


def _kernel_sum(unit: torch.Tensor) -> torch.Tensor:
    """Sum the Gaussian kernel over the pairs i < j of unit rows [N, D]: float64."""
    total = torch.zeros((), dtype=torch.float64, device=unit.device)
    for rows in _row_blocks(len(unit), len(unit)):
        total += _gaussian_kernel(unit[rows], unit[rows.start :]).triu_(1).sum(dtype=torch.float64)
    return total


def _kernel_sums_between(image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the Gaussian kernel over i ≠ j and over i = j of unit rows [N, D] each: float64."""
    across, paired = torch.zeros(2, dtype=torch.float64, device=image.device)
    for rows in _row_blocks(len(image), len(image)):
        kernel = _gaussian_kernel(image[rows], text)
        diagonal = kernel.diagonal(offset=rows.start)
        paired += diagonal.sum(dtype=torch.float64)
        diagonal.zero_()
        across += kernel.sum(dtype=torch.float64)
    return across, paired


def _gaussian_kernel(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Compute exp(−2 ‖x − y‖²) of unit rows, as exp(4 x·y − 4): [A, D], [B, D] -> [A, B]."""
    return (left @ right.T).mul_(4).sub_(4).exp_()


def relative_modality_gap(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Measure how dissimilar pairs are, relative to the spread within the modalities: c / (c + (a + b) / 2), in [0, 1].

    c is the mean of (1 − cos)/2 over the pairs, a and b its means over i ≠ j within images and within texts.
    Source: Schrodi et al., ICLR 2025 (arXiv 2404.07983); the diagonal is excluded and the halving kept, unlike in
    some copies in circulation.

    >>> pairs = torch.eye(2)
    >>> relative_modality_gap(pairs, pairs)  # paired exactly, so c = 0
    tensor(0.)
    >>> relative_modality_gap(pairs, -pairs)  # c = 1, a = b = 1/2
    tensor(0.6667)
    """
    image, text = _unit_pairs(image_features, text_features, minimum=2)
    between = (1 - pair_cosine(image, text)) / 2
    within = (_mean_dissimilarity(image) + _mean_dissimilarity(text)) / 2
    total = between + within
    return between / total if total > 0 else total


def _mean_dissimilarity(unit: torch.Tensor) -> torch.Tensor:
    """Mean (1 − cos)/2 over i ≠ j in O(N·D): the off-diagonal cosines sum to ‖Σx‖² − Σ‖x‖²."""
    rows = unit.double()
    off_diagonal = rows.sum(0).square().sum() - rows.square().sum()
    return ((1 - off_diagonal / (len(rows) * (len(rows) - 1))) / 2).to(unit.dtype)


def frechet_parts(image_features: torch.Tensor, text_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fréchet distance between the modalities as Gaussians, split: (‖Δ‖², tr(C_x + C_y − 2 (C_x C_y)^½)).

    The first part is the gap between the centroids, the second between the shapes; mean-centring can only remove the
    first. Source: Dowson & Landau 1982, as in FID (Heusel et al., NeurIPS 2017); covariances divide by N − 1.
    """
    image, text = (side.double() for side in _unit_pairs(image_features, text_features, minimum=2))
    covariance_image, covariance_text = torch.cov(image.T), torch.cov(text.T)
    values, vectors = torch.linalg.eigh(covariance_image)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_text @ root).clamp(min=0).sqrt().sum()
    shape = (covariance_image.trace() + covariance_text.trace() - 2 * cross).clamp(min=0)
    dtype = torch.float64 if image_features.dtype == torch.float64 else torch.float32
    return (image.mean(0) - text.mean(0)).square().sum().to(dtype), shape.to(dtype)


def modality_purity(image_features: torch.Tensor, text_features: torch.Tensor, *, neighbours: int = 10) -> torch.Tensor:
    """Mean share of a point's nearest neighbours (by cosine, itself excluded) that are of its own modality.

    1: the modalities are apart; (N − 1)/(2N − 1), about ½: they are mixed.
    """
    image, text = _unit_pairs(image_features, text_features)
    joined, count = torch.cat([image, text]), len(image)
    if neighbours >= 2 * count:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} points, got {2 * count}")
    own = 0
    for rows in _row_blocks(2 * count, 2 * count):
        cosines = joined[rows] @ joined.T
        cosines.diagonal(offset=rows.start).fill_(-torch.inf)
        is_image = torch.arange(rows.start, rows.stop, device=joined.device) < count
        own += int(((cosines.topk(neighbours).indices < count) == is_image[:, None]).sum())
    return torch.tensor(own / (2 * count * neighbours), dtype=image.dtype)


def linear_separability(image_features: torch.Tensor, text_features: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """Accuracy with which a linear classifier tells images from texts on held-out pairs; ½: it cannot.

    Half of the pairs, drawn with `seed`, train `logistic_regression` with C = 1, the other half is scored.
    Source: Welle 2023 and Fahim et al. (arXiv 2405.18570), who hold out a fifth. Features centred with the means of
    these same pairs score below chance, so centre with others.

    Args:
        image_features: [N, D], N >= 4.
        text_features: [N, D].
        seed: Decides the halves.
    """
    image, text = (side.cpu().numpy() for side in _unit_pairs(image_features, text_features, minimum=4))
    order = np.random.default_rng(seed).permutation(len(image))
    train, held_out = order[: len(order) // 2], order[len(order) // 2 :]

    def points(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([image[rows], text[rows]]), np.repeat([0, 1], len(rows))

    accuracy = logistic_regression(*points(train)).score(*points(held_out))
    return torch.tensor(accuracy, dtype=torch.float64 if image_features.dtype == torch.float64 else torch.float32)


def logistic_regression(features: np.ndarray, labels: np.ndarray, *, strength: float = 1.0) -> Any:
    """Fit L2-regularised logistic regression to standardised features: [n, D], [n] -> scikit-learn's estimator.

    `strength` is scikit-learn's C, the inverse of the regularisation. Fitted on one thread: for matrices of this size
    more are slower beside torch's own, and the result does not depend on how many there are.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # hardly regularised and separable: where it stopped
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)  # one image of each
        return classifier.fit(features, labels)


def effective_rank(features: torch.Tensor) -> torch.Tensor:
    """Measure how many directions features spread over: exp(entropy of σ / Σσ), σ the singular values, in [1, D].

    1: all lie on one line, whatever they show. On directions, not centred, so that features that all point one way
    count as few. Source: RankMe, Garrido et al., ICML 2023 (arXiv 2210.02885); Roy & Vetterli 2007.

    Args:
        features: [N, D].

    >>> round(effective_rank(torch.eye(4)).item(), 3), round(effective_rank(torch.ones(4, 4)).item(), 3)
    (4.0, 1.0)
    """
    unit = _unit_rows(features, "features")
    rows = unit.double()
    singular = torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp().to(unit.dtype)


def raw_norm(raw_features: torch.Tensor) -> torch.Tensor:
    """Mean L2 norm of the rows before normalisation. HyCD's raw logits are cosines times two of these."""
    if raw_features.ndim != 2:
        raise ValueError(f"raw_features must be [N, D], got {list(raw_features.shape)}")
    return raw_features.detach().norm(dim=1).mean()


def gap_suite(image_features: torch.Tensor, text_features: torch.Tensor, *, seed: int = 0) -> dict[str, float]:
    """Compute every metric of the gap on N >= 6 pairs, by the name under which it is reported."""
    image, text = _unit_pairs(image_features, text_features, minimum=6)
    frechet_mean, frechet_covariance = frechet_parts(image, text)
    values = {
        "centroid_distance": centroid_distance(image, text),
        "centroid_floor": centroid_floor(image, text),
        "centroid_mse_e3": centroid_mse(image, text),
        "alignment": alignment(image, text),
        "pair_cosine": pair_cosine(image, text),
        **uniformities(image, text),
        "relative_modality_gap": relative_modality_gap(image, text),
        "linear_separability": linear_separability(image, text, seed=seed),
        "gap_share_top_1": gap_concentration(image, text, top=1),
        "gap_share_top_2": gap_concentration(image, text, top=2),
        "gap_share_top_8": gap_concentration(image, text, top=8),
        "frechet_mean": frechet_mean,
        "frechet_covariance": frechet_covariance,
        "modality_purity_at_10": modality_purity(image, text, neighbours=10),
        "effective_rank_image": effective_rank(image),
        "effective_rank_text": effective_rank(text),
    }
    return {name: value.item() for name, value in values.items()}


# ---- mean-centring, the free baseline ----


def modality_mean(features: torch.Tensor) -> torch.Tensor:
    """Mean direction of the samples that centre others, not normalised: [N, D] -> [D]."""
    return _unit_rows(features, "features").mean(0)


def mean_centre(features: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Unit rows minus their modality's `mean` [D], with unit norm again: [N, D] -> [N, D].

    `mean` must come from other data than `features`: centred with its own mean, a set has no gap by construction.
    Source: I0T_post of An et al., "I0T: Embedding Standardization Method Towards Zero Modality Gap", ACL 2025.
    """
    if mean.shape != features.shape[-1:]:
        raise ValueError(f"mean must be [D] = {list(features.shape[-1:])}, got {list(mean.shape)}")
    unit = _unit_rows(features, "features")
    centred = unit.sub_(mean.to(unit))  # in place, here and below: a large set is held as few times as possible
    return centred.div_(centred.norm(dim=-1, keepdim=True).clamp_min_(1e-12))


# ---- ranks: retrieval and classification ----


class Ranks(NamedTuple):
    """Where Q queries find the best of their own candidates, ties kept open."""

    better: torch.Tensor  # [Q] int64: candidates that score above the best own one
    tied: torch.Tensor  # [Q] int64: candidates that share its score, itself included
    own_tied: torch.Tensor  # [Q] int64: own ones among those

    def hit_at(self, k: int) -> torch.Tensor:
        """Probability that an own candidate is in the first `k` places, ties ordered by lot: [Q] float64.

        m = k − better places are left for the tied ones, so P = 1 − C(tied − own, m) / C(tied, m) (hypergeometric).

        >>> Ranks(torch.tensor([0]), torch.tensor([4]), torch.tensor([1])).hit_at(1)  # one of four equals
        tensor([0.2500], dtype=torch.float64)
        """
        tied = self.tied.double()
        places = torch.minimum((k - self.better).clamp(min=0).double(), tied)
        miss = torch.ones_like(tied)
        for taken in range(int(self.own_tied.max()) if len(tied) else 0):
            chance = (tied - places - taken).clamp(min=0) / (tied - taken).clamp(min=1)
            miss = torch.where(taken < self.own_tied, miss * chance, miss)
        return 1 - miss

    def expected(self) -> torch.Tensor:
        """Return the expected place, 1 the first, of the best own: better + (tied + 1)/(own_tied + 1), [Q] float64.

        A query without own candidates comes after the last place.
        """
        return self.better + (self.tied + 1) / (self.own_tied + 1).double()

    def log_place(self) -> torch.Tensor:
        """Return the expected natural logarithm of the place of the best own, ties ordered by lot: [Q] float64.

        The best own one of t tied, o of them own, has place better + m with P(m) = C(t − m, o − 1) / C(t, o). A query
        without own candidates comes after the last place.

        >>> Ranks(torch.tensor([0]), torch.tensor([2]), torch.tensor([1])).log_place().exp()  # first or second: √2
        tensor([1.4142], dtype=torch.float64)
        """
        distinct, row = torch.unique(torch.stack(tuple(self), 1), dim=0, return_inverse=True)
        found = (distinct[:, 0] + 1).double().log()
        for number in ((distinct[:, 1] > distinct[:, 2]) & (distinct[:, 2] > 0)).nonzero()[:, 0].tolist():
            better, tied, own = distinct[number].double()
            places = torch.arange(1, int(tied - own) + 2, dtype=torch.float64, device=found.device)
            chances = (_log_choose(tied - places, own - 1) - _log_choose(tied, own)).exp()
            found[number] = (chances * (better + places).log()).sum()
        return found[row]

    def log_rank_score(self, num_candidates: int) -> torch.Tensor:
        """Return 1 − ln(place) / ln(candidates): 1 in the first place, 0 in the last, equal steps for equal ratios.

        [Q] float64. Of a mean over queries, exp((1 − score) · ln(candidates)) is the geometric mean of the places.

        >>> Ranks(torch.tensor([9]), torch.tensor([1]), torch.tensor([1])).log_rank_score(100)  # the tenth of a hundred
        tensor([0.5000], dtype=torch.float64)
        """
        return 1 - self.log_place() / math.log(num_candidates) if num_candidates > 1 else self.log_place() + 1


def _log_choose(n: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return ln C(n, k)."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _distinct_rows(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows that differ, how often each occurs, and which of them each row is: [U, D], [U] and [N]."""
    distinct, inverse, counts = torch.unique(features, dim=0, return_inverse=True, return_counts=True)
    if len(distinct) == len(features):
        return features, counts, torch.arange(len(features), device=features.device)
    return distinct, counts, inverse


class _Search(NamedTuple):
    """Which candidates are searched, and which of them are a query's own."""

    candidates: torch.Tensor  # [c] rows of all candidates
    own_query: torch.Tensor  # [P] of each own pair the row of the query, and
    own_candidate: torch.Tensor  # [P] the row of the candidate
    itself: torch.Tensor | None = None  # [Q] the row of each query among the candidates, where it does not look at it


def _rank(queries: torch.Tensor, candidates: torch.Tensor, searches: Sequence[_Search]) -> list[Ranks]:
    """Rank the best own candidate of each query by cosine, in each search; unit rows [Q, D], [C, D].

    One matrix product per block of queries serves all searches; the own scores are read from the same product as the
    others. What lives through the loop is allocated before it: small tensors kept from each round would leave holes
    between large ones, and the process would grow by the size of a block per round.
    """
    distinct, _, inverse = _distinct_rows(candidates)
    found = [Ranks(*torch.zeros(3, len(queries), dtype=torch.int64, device=queries.device)) for _ in searches]
    searches = [_over_distinct(search, inverse) for search in searches]
    # of each distinct row how many searched candidates it stands for; sums of counts are exact in fp32 below 2^24
    weights = [torch.bincount(one.candidates, minlength=len(distinct)).to(queries.dtype) for one in searches]
    flags = torch.empty(0, dtype=queries.dtype, device=queries.device)
    for rows in _row_blocks(len(queries), len(distinct)):
        scores = queries[rows] @ distinct.T
        flags.resize_(scores.shape)
        for search, counts, ranks in zip(searches, weights, found, strict=True):
            ends = torch.tensor([rows.start, rows.stop], device=queries.device)
            first, last = torch.searchsorted(search.own_query, ends)
            row = search.own_query[first:last] - rows.start
            own_scores = scores[row, search.own_candidate[first:last]]
            best = torch.full((len(scores), 1), torch.inf, dtype=scores.dtype, device=scores.device)
            best[:, 0].scatter_reduce_(0, row, own_scores, "amax", include_self=False)
            ranks.better[rows] = (torch.gt(scores, best, out=flags) @ counts).long()
            ranks.better[rows][best[:, 0].isinf()] = len(search.candidates)  # no own candidate: after the last place
            ranks.tied[rows] = (torch.eq(scores, best, out=flags) @ counts).long()
            ranks.own_tied[rows].index_add_(0, row, (own_scores == best[row, 0]).long())
            if search.itself is not None:
                of_itself = scores.gather(1, search.itself[rows, None])
                ranks.better[rows] -= (of_itself > best)[:, 0].long()
                ranks.tied[rows] -= (of_itself == best)[:, 0].long()
    return found


def _over_distinct(search: _Search, inverse: torch.Tensor) -> _Search:
    """Name candidates by their distinct row, and sort the own pairs by query."""
    order = search.own_query.argsort(stable=True)
    itself = None if search.itself is None else inverse[search.itself]
    return _Search(inverse[search.candidates], search.own_query[order], inverse[search.own_candidate[order]], itself)


class Subset(NamedTuple):
    """Some of the images and captions of a set, searched among themselves."""

    images: torch.Tensor  # [n] rows, each once
    texts: torch.Tensor  # [m] rows, each once; their images are in `images`


def retrieval_ranks(
    image_features: torch.Tensor, text_features: torch.Tensor, text_image_index: torch.Tensor
) -> tuple[Ranks, Ranks]:
    """Rank every image's best own caption among all captions, and every caption's image among all images.

    Exact at any size in bounded memory. An image without captions is a candidate like others and is never found.

    Args:
        image_features: [N, D].
        text_features: [M, D].
        text_image_index: [M] integers, each caption's row in `image_features`.

    Returns:
        Image to text [N] and text to image [M].

    Raises:
        ValueError: Shapes do not fit, or an index is outside the images.
    """
    whole = Subset(torch.arange(len(image_features)), torch.arange(len(text_features)))
    [ranks] = retrieval_ranks_within(image_features, text_features, text_image_index, [whole])
    return ranks


def retrieval_ranks_within(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    text_image_index: torch.Tensor,
    subsets: Sequence[Subset],
) -> list[tuple[Ranks, Ranks]]:
    """Return for each subset the `retrieval_ranks` among its own images and captions; all of them share the scores.

    Args: see `retrieval_ranks`; and
        subsets: What is searched.

    Returns:
        Of each subset image to text [n] and text to image [m].
    """
    image, text = _unit_rows(image_features, "image_features"), _unit_rows(text_features, "text_features")
    if image.shape[1] != text.shape[1]:
        raise ValueError(f"image_features have width {image.shape[1]}, text_features {text.shape[1]}")
    if text_image_index.shape != (len(text),) or text_image_index.is_floating_point():
        raise ValueError(f"text_image_index must be {len(text)} integers, got {list(text_image_index.shape)}")
    index = text_image_index.to(device=image.device, dtype=torch.int64)
    if index.min() < 0 or index.max() >= len(image):
        raise ValueError(f"text_image_index must lie in [0, {len(image)}), got {index.min()} to {index.max()}")
    some = [Subset(*(rows.to(image.device) for rows in subset)) for subset in subsets]
    to_text = _rank(image, text, [_Search(one.texts, index[one.texts], one.texts) for one in some])
    to_image = _rank(text, image, [_Search(one.images, one.texts, index[one.texts]) for one in some])
    return [
        (Ranks(*(values[one.images] for values in images)), Ranks(*(values[one.texts] for values in texts)))
        for one, images, texts in zip(some, to_text, to_image, strict=True)
    ]


def retrieval_recall(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    text_image_index: torch.Tensor,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Share of queries with an own counterpart among the first k, both directions, all captions.

    A hit if any own caption is in the first k (the CLIP convention: Radford et al., ICML 2021, arXiv 2103.00020);
    ties share the places.

    Args:
        image_features: [N, D].
        text_features: [M, D].
        text_image_index: [M] integers, each caption's image row.
        ks: Places that count.

    Returns:
        `image_to_text_recall_at_1`, …, `text_to_image_recall_at_1`, …, each in [0, 1].

    >>> images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.2]])
    >>> retrieval_recall(images, texts, torch.tensor([0, 0, 1]), ks=(1,))
    {'image_to_text_recall_at_1': 1.0, 'text_to_image_recall_at_1': 0.6666666666666666}
    """
    directions = retrieval_ranks(image_features, text_features, text_image_index)
    return {
        f"{direction}_recall_at_{k}": ranks.hit_at(k).mean().item()
        for direction, ranks in zip(("image_to_text", "text_to_image"), directions, strict=True)
        for k in ks
    }


def caption_pair_ranks(text_features: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> Ranks:
    """Rank the second caption of an image among those of all images, searched for with its first: [n].

    Its hit at 1 is the caption retrieval accuracy of LLM2CLIP (arXiv 2411.04997), without a prompt. It falls with the
    number of candidates, n, which belongs beside it.

    Args:
        text_features: [M, D].
        first: [n] integers, the row of a caption of each image.
        second: [n] integers, that of another one.

    >>> captions = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.1], [0.0, 1.0]])  # two of each image
    >>> caption_pair_ranks(captions, torch.tensor([0, 2]), torch.tensor([1, 3])).hit_at(1)
    tensor([1., 0.], dtype=torch.float64)
    """
    text = _unit_rows(text_features, "text_features")
    if first.shape != second.shape or not len(first):
        raise ValueError(f"expected as many first as second captions, got {list(first.shape)}, {list(second.shape)}")
    pairs = torch.arange(len(first), device=text.device)
    [ranks] = _rank(text[first], text[second], [_Search(pairs, pairs, pairs)])
    return ranks


def caption_ranks_within(
    text_features: torch.Tensor, text_image_index: torch.Tensor, subsets: Sequence[torch.Tensor]
) -> list[Ranks]:
    """Rank, for every caption, the best other caption of its image among all other captions, itself left out.

    A caption without another one of its image comes after the last place; see `Ranks.expected`.

    Args:
        text_features: [M, D].
        text_image_index: [M] integers, each caption's image.
        subsets: Rows that are searched among themselves, each once; all subsets share the scores.

    Returns:
        Of each subset [m].
    """
    text = _unit_rows(text_features, "text_features")
    if text_image_index.shape != (len(text),) or text_image_index.is_floating_point():
        raise ValueError(f"text_image_index must be {len(text)} integers, got {list(text_image_index.shape)}")
    index = text_image_index.to(device=text.device, dtype=torch.int64)
    some, itself = [rows.to(text.device) for rows in subsets], torch.arange(len(text), device=text.device)
    ranks = _rank(text, text, [_Search(rows, *_siblings(rows, index[rows]), itself) for rows in some])
    return [Ranks(*(values[rows] for values in one)) for rows, one in zip(some, ranks, strict=True)]


def _siblings(rows: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all ordered pairs of two of `rows` whose `image` is the same: [P] and [P]."""
    image, order = image.sort(stable=True)
    rows = rows[order]
    _, counts = image.unique_consecutive(return_counts=True)
    size = counts.repeat_interleave(counts)  # of the group that each row is in, and where that begins
    start = (counts.cumsum(0) - counts).repeat_interleave(counts)
    query = torch.arange(len(rows), device=rows.device).repeat_interleave(size)
    place = torch.arange(len(query), device=rows.device) - (size.cumsum(0) - size).repeat_interleave(size)
    other = start.repeat_interleave(size) + place
    return rows[query[query != other]], rows[other[query != other]]


# ---- choices between texts and images ----


def cosines(
    first_features: torch.Tensor, second_features: torch.Tensor, first_index: torch.Tensor, second_index: torch.Tensor
) -> torch.Tensor:
    """Cosine of each pair of rows: [P]. Pairs with equal features have equal cosines, bit by bit, so that ties show.

    Args:
        first_features: [N, D].
        second_features: [M, D].
        first_index: [P] integers, rows of `first_features`.
        second_index: [P] integers, rows of `second_features`.

    Raises:
        ValueError: The widths differ, or the indices are not as many.
    """
    first, second = _unit_rows(first_features, "first_features"), _unit_rows(second_features, "second_features")
    if first.shape[1] != second.shape[1] or first_index.shape != second_index.shape:
        raise ValueError(
            f"expected features of one width and as many indices, got {list(first.shape)} and {list(second.shape)}, "
            f"{list(first_index.shape)} and {list(second_index.shape)}"
        )
    (first, _, first_row), (second, _, second_row) = _distinct_rows(first), _distinct_rows(second)
    pairs = torch.stack([first_row[first_index], second_row[second_index]], 1)
    pairs, pair_of = pairs.unique(dim=0, return_inverse=True)
    found = torch.empty(len(pairs), dtype=first.dtype, device=first.device)
    for rows in _row_blocks(len(pairs), first.shape[1]):
        found[rows] = (first[pairs[rows, 0]] * second[pairs[rows, 1]]).sum(1)
    return found[pair_of]


def choice_hits(right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """Whether every right candidate scores strictly above every wrong one: [..., P] and [..., Q] -> bool [...].

    Source: SugarCrepe, Hsieh et al., NeurIPS 2023 (arXiv 2306.14610), with one of each; SugarCrepe++, Dumpala et al.,
    NeurIPS 2024 (arXiv 2406.11171), with two right ones (ITT). A tie is wrong.

    >>> choice_hits(torch.tensor([[0.3, 0.2], [0.3, 0.1]]), torch.tensor([[0.1], [0.1]]))
    tensor([ True, False])
    """
    return right.amin(-1) > wrong.amax(-1)


class PairHits(NamedTuple):
    """Whether two images and two captions are matched rightly: bool [C] each."""

    text: torch.Tensor  # of each image, its own caption scores strictly above the other
    image: torch.Tensor  # of each caption, its own image scores strictly above the other
    group: torch.Tensor  # both


def pair_hits(cosines: torch.Tensor) -> PairHits:
    """Match two images and two captions: cosines [C, 2 images, 2 captions], own ones on the diagonal.

    Source: Winoground, Thrush et al., CVPR 2022 (arXiv 2204.03162). Chance, the four cosines drawn
    alike, is 1/4, 1/4 and, since both own ones must be the two largest, 1/6. A tie is wrong.

    >>> pair_hits(torch.tensor([[[0.4, 0.3], [0.1, 0.2]]]))
    PairHits(text=tensor([True]), image=tensor([False]), group=tensor([False]))
    """
    if cosines.ndim != 3 or cosines.shape[1:] != (2, 2):
        raise ValueError(f"cosines must be [C, 2, 2], got {list(cosines.shape)}")
    own, other = cosines.diagonal(dim1=1, dim2=2), cosines.flip(2).diagonal(dim1=1, dim2=2)  # [C, image] each
    text = (own > other).all(1)
    image = (own > other.flip(1)).all(1)
    return PairHits(text, image, text & image)


# ---- zero-shot classification ----


def class_embeddings(prompt_features: torch.Tensor) -> torch.Tensor:
    """Make one direction per class from P prompts: normalise, mean over prompts, normalise. [K, P, D] -> [K, D].

    Source: the prompt ensembling of Radford et al., ICML 2021 (arXiv 2103.00020), section 3.1.4.
    """
    if prompt_features.ndim != 3:
        raise ValueError(f"prompt_features must be [K, P, D], got {list(prompt_features.shape)}")
    return F.normalize(F.normalize(prompt_features.detach(), dim=-1).mean(1), dim=-1)


class Classification(NamedTuple):
    """What a zero-shot classifier says of N images."""

    ranks: Ranks  # [N] of the true class among the K
    prediction: torch.Tensor  # [N] int64, the likeliest class
    confidence: torch.Tensor  # [N], its probability


def classify(
    image_features: torch.Tensor, class_features: torch.Tensor, labels: torch.Tensor, logit_scale: float
) -> Classification:
    """Classify images by the cosine with each class's direction.

    Args:
        image_features: [N, D].
        class_features: [K, D], see `class_embeddings`.
        labels: [N] integers in [0, K).
        logit_scale: The model's multiplier on cosines, already exponentiated; decides the confidence only.

    Raises:
        ValueError: Shapes do not fit, or a label is not a class.
    """
    image, classes = _unit_rows(image_features, "image_features"), _unit_rows(class_features, "class_features")
    if labels.shape != (len(image),) or image.shape[1] != classes.shape[1]:
        raise ValueError(
            f"expected labels [N] and features of one width, got labels {list(labels.shape)}, image_features "
            f"{list(image.shape)}, class_features {list(classes.shape)}"
        )
    labels = labels.to(device=image.device, dtype=torch.int64)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels must lie in [0, {len(classes)}), got {labels.min()} to {labels.max()}")
    every = torch.arange(len(classes), device=image.device)
    [ranks] = _rank(image, classes, [_Search(every, torch.arange(len(image), device=image.device), labels)])
    predictions, confidences = [], []
    for rows in _row_blocks(len(image), len(classes)):
        confidence, prediction = (logit_scale * (image[rows] @ classes.T)).softmax(1).max(1)
        predictions.append(prediction)
        confidences.append(confidence)
    return Classification(ranks, torch.cat(predictions), torch.cat(confidences))


def expected_calibration_error(confidence: torch.Tensor, correct: torch.Tensor, *, bins: int = 15) -> torch.Tensor:
    """Mean |accuracy − confidence| over equally wide bins of confidence, weighted by their share of the items.

    Source: Guo et al., ICML 2017 (arXiv 1706.04599), 15 bins (a, b].

    Args:
        confidence: [N] probabilities of the predicted classes.
        correct: [N], 1 where the prediction was right.
        bins: How many.

    >>> expected_calibration_error(torch.tensor([0.9, 0.9, 0.3]), torch.tensor([1, 1, 1]), bins=2)
    tensor(0.3000)
    """
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"expected two vectors [N], got {list(confidence.shape)} and {list(correct.shape)}")
    bin_of = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    excess = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    excess.index_add_(0, bin_of, correct.double() - confidence.double())
    return (excess.abs().sum() / len(confidence)).to(confidence.dtype)


def negative_log_likelihood(
    image_features: torch.Tensor, class_features: torch.Tensor, labels: torch.Tensor, logit_scale: float
) -> float:
    """Mean −log of the probability of the true class, softmax(logit_scale · cosine): what a temperature is fitted by.

    Args:
        image_features: [N, D], N >= 1.
        class_features: [K, D].
        labels: [N] integers in [0, K).
        logit_scale: Multiplier on cosines.
    """
    image, classes = _unit_rows(image_features, "image_features"), _unit_rows(class_features, "class_features")
    total = 0.0
    for rows in _row_blocks(len(image), len(classes)):
        logits = logit_scale * (image[rows] @ classes.T).double()
        total += F.cross_entropy(logits, labels[rows], reduction="sum").item()
    return total / len(image)


def refit_temperature(
    image_features: torch.Tensor, class_features: torch.Tensor, labels: torch.Tensor, logit_scale: float
) -> float:
    """Fit the T by which all logits are divided, to the least `negative_log_likelihood`: above 1, they were too sure.

    One number for all images, so that no prediction changes. It is looked for on log T and lies between 1/100 and 100,
    near an end where every prediction is right, or none better than chance. Source: temperature scaling, Guo et al.,
    ICML 2017 (arXiv 1706.04599), section 4.2.

    Args: see `negative_log_likelihood`; `logit_scale` is that of T = 1.

    >>> image, labels = torch.eye(2)[[0, 0, 0, 1]], torch.tensor([0, 0, 1, 1])  # right three times of four
    >>> round(1 / refit_temperature(image, torch.eye(2), labels, 1.0), 3)  # and so as sure: log(3)
    1.099
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(image_features, class_features, labels, logit_scale / exp(log_temperature))

    end = log(100)
    found = minimize_scalar(loss, bounds=(-end, end), method="bounded", options={"xatol": 1e-6})
    return exp(min(0.0, float(found.x), key=loss))


def class_means(values: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Mean of `values` [N] within each class: [K] float64, NaN for a class that does not occur."""
    sums = torch.zeros(num_classes, dtype=torch.float64, device=values.device).index_add_(0, labels, values.double())
    return sums / torch.bincount(labels, minlength=num_classes)


def confusions(prediction: torch.Tensor, labels: torch.Tensor, *, top: int = 20) -> list[tuple[int, int, int]]:
    """List the most frequent mistakes as (true class, predicted class, how often), most frequent first, then by class.

    >>> confusions(torch.tensor([1, 1, 0, 2]), torch.tensor([0, 0, 0, 1]))
    [(0, 1, 2), (1, 2, 1)]
    """
    wrong = prediction != labels
    pairs, counts = torch.stack([labels[wrong], prediction[wrong]], 1).unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:top].tolist()
    return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]
