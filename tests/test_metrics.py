"""Every metric against a slow independent reference, hand-sized cases, and the known answers on real CLIP features."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch.nn.functional import normalize

from pipeline_lib import metrics

KNOWN_ANSWERS = Path(__file__).parents[2] / "shared" / "known_answers" / "clip_vitb16_coco500.npy"


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that the seams between them are crossed."""
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", 40)


def random_pairs(count=13, width=6, seed=0, dtype=torch.float64):
    """Features with a gap: two clouds around different centres, norms far from 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, count, width, generator=generator, dtype=dtype)
    shift = torch.linspace(-1, 2, width, dtype=dtype)
    return 3 * (noise[0] + noise[1] + shift), 5 * (noise[0] + noise[2] - shift)


def unit(rows):
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows.tolist()]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def squared_distance(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def kernel(x, y):
    return math.exp(-2 * squared_distance(x, y))


@pytest.mark.skipif(not KNOWN_ANSWERS.is_file(), reason=f"{KNOWN_ANSWERS} is not here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_answers_on_real_clip_features(dtype):
    image, text = torch.from_numpy(np.load(KNOWN_ANSWERS).astype(np.float64)).to(dtype)
    values = metrics.gap_suite(image, text)
    known = {
        "centroid_distance": 0.85135,
        "centroid_mse_e3": 1.41562,
        "alignment": 1.38016,
        "pair_cosine": 0.30992,
        "relative_modality_gap": 0.59146,
        "linear_separability": 1.0,
        "modality_purity_at_10": 1.0,
    }
    assert {name: values[name] for name in known} == pytest.approx(known, abs=1e-4)
    known = {"uniformity": -2.31, "uniformity_image": -1.79, "uniformity_text": -1.84, "uniformity_cross": -3.33}
    assert {name: values[name] for name in known} == pytest.approx(known, abs=0.01)
    known = {"gap_share_top_1": 0.346, "gap_share_top_2": 0.686, "frechet_mean": 0.725, "frechet_covariance": 0.380}
    assert {name: values[name] for name in known} == pytest.approx(known, abs=5e-4)
    recall = metrics.retrieval_recall(image, text, torch.arange(500))
    assert recall["image_to_text_recall_at_1"] == pytest.approx(0.552, abs=1e-9)
    assert recall["text_to_image_recall_at_1"] == pytest.approx(0.506, abs=1e-9)


def test_gap_metrics_equal_slow_loops(small_blocks):
    image, text = random_pairs()
    x, y, joint = unit(image), unit(text), unit(torch.cat([image, text]))
    count, width = len(x), len(x[0])
    delta = [mean(row[k] for row in x) - mean(row[k] for row in y) for k in range(width)]
    shares = sorted((d * d for d in delta), reverse=True)
    between = mean((1 - dot(a, b)) / 2 for a, b in zip(x, y, strict=True))
    within = [mean((1 - dot(side[i], side[j])) / 2 for i, j in combinations(range(count), 2)) for side in (x, y)]
    expected = {
        "centroid_distance": math.sqrt(sum(shares)),
        "centroid_mse_e3": 1000 * sum(shares) / width,
        "alignment": mean(squared_distance(a, b) for a, b in zip(x, y, strict=True)),
        "pair_cosine": mean(dot(a, b) for a, b in zip(x, y, strict=True)),
        "uniformity": math.log(mean(kernel(a, b) for a, b in combinations(joint, 2))),
        "uniformity_image": math.log(mean(kernel(a, b) for a, b in combinations(x, 2))),
        "uniformity_text": math.log(mean(kernel(a, b) for a, b in combinations(y, 2))),
        "uniformity_cross": math.log(mean(kernel(x[i], y[j]) for i in range(count) for j in range(count) if i != j)),
        "relative_modality_gap": between / (between + sum(within) / 2),
        "gap_share_top_1": shares[0] / sum(shares),
        "gap_share_top_2": sum(shares[:2]) / sum(shares),
        "frechet_mean": sum(shares),
    }
    neighbours = []
    for i, point in enumerate(joint):
        nearest = sorted((j for j in range(2 * count) if j != i), key=lambda j: -dot(point, joint[j]))[:10]
        neighbours.append(mean((j < count) == (i < count) for j in nearest))
    expected["modality_purity_at_10"] = mean(neighbours)
    values = metrics.gap_suite(image, text)
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-10)


def test_frechet_covariance_part_equals_scipys_matrix_root():
    from scipy.linalg import sqrtm

    image, text = random_pairs(count=40)
    cx, cy = (np.cov(np.array(unit(side)).T) for side in (image, text))
    expected = np.trace(cx + cy - 2 * sqrtm(cx @ cy).real)
    assert metrics.frechet_parts(image, text)[1].item() == pytest.approx(expected, rel=1e-8)
    assert metrics.frechet_parts(image, image)[1].item() == pytest.approx(0, abs=1e-12)


def test_fewer_pairs_than_dimensions_leave_the_frechet_distance_finite():
    image, text = random_pairs(count=3, width=8)
    assert all(part.isfinite() for part in metrics.frechet_parts(image, text))


def test_relative_modality_gap_is_neither_of_the_circulating_variants():
    """Neither without the halving of the intra-modal part nor with the diagonal kept."""
    image, text = random_pairs()
    x, y = torch.nn.functional.normalize(image), torch.nn.functional.normalize(text)
    between = (1 - (x * y).sum(1).mean()) / 2
    full = ((1 - x @ x.T) / 2).mean() + ((1 - y @ y.T) / 2).mean()
    value = metrics.relative_modality_gap(image, text)
    assert not torch.isclose(value, between / (between + full / 2), rtol=1e-3)
    assert not torch.isclose(value, between / (between + full), rtol=1e-3)


def test_norms_change_nothing():
    """Alignment and uniformity on raw features were a defect of the published code: here rows are always directions."""
    image, text = random_pairs()
    scaled = metrics.gap_suite(image * torch.linspace(0.1, 90, 13)[:, None], text * 7)
    assert scaled == pytest.approx(metrics.gap_suite(image, text), rel=1e-9)


def test_type_of_the_features_is_kept():
    for dtype in (torch.float32, torch.float64):
        image, text = random_pairs(dtype=dtype)
        values = [
            metrics.centroid_distance(image, text),
            metrics.centroid_mse(image, text),
            metrics.alignment(image, text),
            metrics.pair_cosine(image, text),
            metrics.uniformity(image),
            metrics.cross_modal_uniformity(image, text),
            metrics.relative_modality_gap(image, text),
            metrics.gap_concentration(image, text, top=2),
            *metrics.frechet_parts(image, text),
            metrics.modality_purity(image, text),
            metrics.linear_separability(image, text),
        ]
        assert [value.dtype for value in values] == [dtype] * len(values)
        assert all(value.ndim == 0 for value in values)


def test_features_that_carry_a_gradient_are_only_read():
    image, text = (side.requires_grad_() for side in random_pairs())
    assert not metrics.alignment(image, text).requires_grad
    metrics.gap_suite(image, text)


def test_linear_separability_is_certain_with_a_gap_and_chance_without():
    image, text = random_pairs(count=400)
    assert metrics.linear_separability(image, text) > 0.95
    generator = torch.Generator().manual_seed(1)
    one_cloud = torch.randn(2, 400, 6, generator=generator)
    assert metrics.linear_separability(*one_cloud) == pytest.approx(0.5, abs=0.08)
    assert metrics.linear_separability(*one_cloud) == metrics.linear_separability(*one_cloud, seed=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.centroid_distance(torch.zeros(3, 2), torch.zeros(4, 2)),
        lambda: metrics.alignment(torch.zeros(3), torch.zeros(3)),
        lambda: metrics.uniformity(torch.zeros(1, 2)),
        lambda: metrics.uniformity(torch.zeros(3, 2, dtype=torch.int64)),
        lambda: metrics.relative_modality_gap(torch.zeros(3, 2), torch.zeros(3, 3)),
        lambda: metrics.modality_purity(torch.zeros(3, 2), torch.zeros(3, 2), neighbours=6),
        lambda: metrics.mean_centre(torch.zeros(3, 2), torch.zeros(3)),
        lambda: metrics.retrieval_recall(torch.zeros(3, 2), torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)),
        lambda: metrics.retrieval_recall(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64)),
        lambda: metrics.retrieval_recall(torch.zeros(3, 2), torch.zeros(2, 2), torch.tensor([0, 3])),
        lambda: metrics.caption_pair_ranks(torch.zeros(3, 2), torch.tensor([0]), torch.tensor([1, 2])),
        lambda: metrics.caption_ranks_within(torch.zeros(3, 2), torch.tensor([0, 1]), []),
        lambda: metrics.retrieval_recall(torch.zeros(3, 2), torch.zeros(2, 2), torch.tensor([0.0, 1.0])),
        lambda: metrics.classify(torch.zeros(3, 2), torch.zeros(2, 2), torch.tensor([0, 1, 2]), 1.0),
        lambda: metrics.classify(torch.zeros(3, 2), torch.zeros(2, 2), torch.tensor([0, 1]), 1.0),
        lambda: metrics.class_embeddings(torch.zeros(3, 2)),
        lambda: metrics.expected_calibration_error(torch.zeros(3), torch.zeros(2)),
        lambda: metrics.raw_norm(torch.zeros(3)),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match=r"must|need|expected|width"):
        call()


# ---- mean-centring ----


def test_mean_centring_with_held_out_means_removes_most_of_the_gap():
    image, text = random_pairs(count=400)
    means = [metrics.modality_mean(side[:200]) for side in (image, text)]
    centred = [metrics.mean_centre(side[200:], m) for side, m in zip((image, text), means, strict=True)]
    assert metrics.centroid_distance(*centred) < 0.15 * metrics.centroid_distance(image[200:], text[200:])
    assert torch.allclose(centred[0].norm(dim=1), torch.ones(200, dtype=torch.float64))


# ---- retrieval ----


def slow_recall(scores, text_image_index, k):
    """Recall by sorting each row of a tie-free score matrix in Python: (image to text, text to image)."""
    images, texts = range(len(scores)), range(len(scores[0]))
    image_hits = [any(text_image_index[j] == i for j in sorted(texts, key=lambda j: -scores[i][j])[:k]) for i in images]
    text_hits = [text_image_index[j] in sorted(images, key=lambda i: -scores[i][j])[:k] for j in texts]
    return mean(image_hits), mean(text_hits)


def test_recall_on_a_matrix_checked_by_eye():
    """Two images; captions 0 and 1 belong to image 0, caption 2 to image 1, whose own comes second for it."""
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.6, 0.8], [1.0, 0.1], [0.8, 0.6]])
    recall = metrics.retrieval_recall(image, text, torch.tensor([0, 0, 1]), ks=(1, 2))
    assert recall == pytest.approx(
        {
            "image_to_text_recall_at_1": 0.5,
            "image_to_text_recall_at_2": 1.0,
            "text_to_image_recall_at_1": 1 / 3,
            "text_to_image_recall_at_2": 1.0,
        }
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 9), extra=st.integers(0, 20))
def test_recall_equals_sorting_every_row(seed, images, extra):
    """Any number of captions per image, in any order, some images without, blocks of any size: as by sorting."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.cat([torch.arange(1), torch.randint(images, (extra,), generator=generator)])
    index = index[torch.randperm(len(index), generator=generator)]
    image = torch.randn(images, 5, generator=generator, dtype=torch.float64)
    text = torch.randn(len(index), 5, generator=generator, dtype=torch.float64)
    scores = [[dot(x, y) for y in unit(text)] for x in unit(image)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK_ELEMENTS", 1 + seed % 50)
        recall = metrics.retrieval_recall(image, text, index)
    for k in (1, 5, 10):
        expected = slow_recall(scores, index.tolist(), k)
        found = recall[f"image_to_text_recall_at_{k}"], recall[f"text_to_image_recall_at_{k}"]
        assert found == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 9), extra=st.integers(0, 20))
def test_a_subset_is_ranked_as_if_it_were_alone(seed, images, extra):
    """Some captions and their images, with ties in the whole and in the subset: the ranks of a set of only those."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.cat([torch.arange(1), torch.randint(images, (extra,), generator=generator)])
    image = torch.randn(images, 5, generator=generator, dtype=torch.float64)
    text = torch.randn(len(index), 5, generator=generator, dtype=torch.float64)
    image[-1], text[-1] = image[0], text[0]
    texts = (torch.rand(len(index), generator=generator) < 0.7).nonzero()[:, 0] if extra else torch.arange(1)
    texts = texts if len(texts) else torch.arange(1)
    rows = index[texts].unique()
    whole = metrics.Subset(torch.arange(images), torch.arange(len(index)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK_ELEMENTS", 1 + seed % 50)
        subsets = [whole, metrics.Subset(rows, texts)]
        of_whole, of_subset = metrics.retrieval_ranks_within(image, text, index, subsets)
        alone = metrics.retrieval_ranks(image[rows], text[texts], torch.searchsorted(rows, index[texts]))
        assert_same_ranks(of_whole, metrics.retrieval_ranks(image, text, index))
    assert_same_ranks(of_subset, alone)


def assert_same_ranks(found, expected):
    for direction, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(direction, other, strict=True))


@pytest.mark.parametrize("captions", [[1, 1, 1, 1], [5, 1, 3, 7]])
@pytest.mark.parametrize("constant", ["both", "images", "texts"])
def test_a_constant_model_scores_chance(captions, constant, small_blocks):
    """With every score equal, recall is the chance of an own item among k drawn without replacement."""
    index = torch.repeat_interleave(torch.arange(4), torch.tensor(captions))
    image, text = torch.randn(4, 3, dtype=torch.float64), torch.randn(len(index), 3, dtype=torch.float64)
    if constant in ("both", "images"):
        image = image[:1].expand(4, 3)
    if constant in ("both", "texts"):
        text = text[:1].expand(len(index), 3)
    recall = metrics.retrieval_recall(image, text, index, ks=(1, 2))
    for k in (1, 2):
        if constant != "images":  # every image then ties all captions
            chance = mean(1 - math.comb(len(index) - n, k) / math.comb(len(index), k) for n in captions)
            assert recall[f"image_to_text_recall_at_{k}"] == pytest.approx(chance)
        if constant != "texts":
            assert recall[f"text_to_image_recall_at_{k}"] == pytest.approx(k / 4)


def test_ties_score_the_mean_over_all_orders():
    """Duplicated captions and images: the closed form equals the average over many random orders of the equals."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(4, 3, generator=generator)[[0, 1, 1, 2, 3, 3]]
    index = torch.tensor([0, 0, 1, 2, 2, 3, 4, 5, 5])
    text = torch.randn(4, 3, generator=generator)[[0, 1, 1, 1, 2, 0, 3, 3, 2]]
    ranks = metrics.retrieval_ranks(image, text, index)
    scores = torch.nn.functional.normalize(image).double() @ torch.nn.functional.normalize(text).double().T
    scores = scores.round(decimals=6)
    rounds = 4000
    jitter = torch.rand(rounds, *scores.shape, generator=generator, dtype=torch.float64) * 1e-9
    order = (scores + jitter).argsort(dim=2, descending=True)
    own = index[order] == torch.arange(6)[None, :, None]
    for k in (1, 2, 3):
        simulated = own[:, :, :k].any(2).double().mean(0)
        assert torch.allclose(ranks[0].hit_at(k), simulated, atol=0.04)
    place = own.double().argmax(2).double().mean(0) + 1
    assert torch.allclose(ranks[0].expected(), place, atol=0.1)


def test_hit_probability_equals_the_hypergeometric_formula():
    better, tied, own = np.array(list(np.ndindex(4, 6, 5))).T
    keep = (tied >= own) & (own >= 1)
    better, tied, own = better[keep], tied[keep], own[keep]
    ranks = metrics.Ranks(*(torch.from_numpy(a) for a in (better, tied, own)))
    for k in range(1, 12):
        places = np.clip(k - better, 0, tied)
        expected = [1 - math.comb(t - o, m) / math.comb(t, m) for t, o, m in zip(tied, own, places, strict=True)]
        assert ranks.hit_at(k).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("better", "tied", "own"), [(0, 1, 1), (3, 1, 1), (0, 4, 1), (2, 5, 2), (1, 4, 4), (0, 6, 3)])
def test_log_place_is_the_mean_over_all_orders(better, tied, own):
    """Every order of the tied ones, the best own one found first."""
    logs = [math.log(better + 1 + min(order)) for order in combinations(range(tied), own)]
    ranks = metrics.Ranks(*(torch.tensor([x, 0]) for x in (better, tied, own)))
    assert ranks.log_place()[0].item() == pytest.approx(mean(logs))
    assert ranks.log_rank_score(50)[0].item() == pytest.approx(1 - mean(logs) / math.log(50))


def test_log_rank_score_runs_from_the_last_place_to_the_first():
    first, last = (metrics.Ranks(*(torch.tensor([x]) for x in (better, 1, 1))) for better in (0, 9))
    assert (first.log_rank_score(10).item(), last.log_rank_score(10).item()) == pytest.approx((1, 0))
    assert first.log_rank_score(1).item() == 1, "the only candidate is found"
    nowhere = metrics.Ranks(torch.tensor([10]), torch.tensor([0]), torch.tensor([0]))
    assert nowhere.log_place().exp().item() == pytest.approx(11), "after the last place"


def test_effective_rank_counts_directions():
    """Entropy of the singular values, from numpy's decomposition; features that all point one way count as few."""
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    singular = np.linalg.svd(normalize(features, dim=1).numpy(), compute_uv=False)
    share = singular / singular.sum()
    assert metrics.effective_rank(features).item() == pytest.approx(math.exp(-(share * np.log(share)).sum()))
    assert metrics.effective_rank(features + 30).item() < 1.5


def test_equal_captions_share_their_place_whatever_their_column():
    """Two copies of every caption: text rows are equal bitwise, so each image finds an own one half of the time."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(301, 64, generator=generator)
    text = torch.cat([image, image])
    index = torch.cat([torch.arange(301), torch.arange(301).roll(1)])  # the second copies belong to another image
    recall = metrics.retrieval_recall(image, text, index)
    assert recall["image_to_text_recall_at_1"] == pytest.approx(0.5)


def slow_caption_hits(text, index):
    """For every caption the chance of another one of its image first among all others, equals by lot; None: no other.

    Of points on axes, whose products are 0 or 1, so that they tie in any arithmetic.
    """
    found = []
    for i, query in enumerate(text):
        scores = {j: dot(query, other) for j, other in enumerate(text) if j != i}
        first = [j for j in scores if scores[j] == max(scores.values())]
        own = [j for j in first if index[j] == index[i]]
        found.append(len(own) / len(first) if index.count(index[i]) > 1 else None)
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 6), extra=st.integers(1, 18))
def test_captions_find_each_other_as_python_sorts_them_ties_by_lot(seed, images, extra):
    """Any number of captions an image in any order, copies among them, in blocks of any size; and a subset alone."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.cat([torch.arange(1), torch.randint(images, (extra,), generator=generator)])
    points = torch.eye(4, dtype=torch.float64)[torch.randint(4, (len(index),), generator=generator)]
    text = points * (1 + torch.randint(3, (len(index), 1), generator=generator))
    texts = (torch.rand(len(index), generator=generator) < 0.7).nonzero()[:, 0]
    texts = texts if len(texts) else torch.arange(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK_ELEMENTS", 1 + seed % 50)
        every, some = metrics.caption_ranks_within(text, index, [torch.arange(len(index)), texts])
    for rows, ranks in ((torch.arange(len(index)), every), (texts, some)):
        expected = slow_caption_hits(points[rows].tolist(), index[rows].tolist())
        asked = torch.tensor([hit is not None for hit in expected])
        assert ranks.hit_at(1)[asked].tolist() == pytest.approx([hit for hit in expected if hit is not None])
        assert ranks.hit_at(1)[~asked].sum() == 0


def test_captions_of_continuous_features_find_the_nearest_other_one():
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(40).repeat_interleave(5)
    text = torch.randn(40, 16, generator=generator)[index] + torch.randn(200, 16, generator=generator)
    cosines = normalize(text.double(), dim=1) @ normalize(text.double(), dim=1).T
    [ranks] = metrics.caption_ranks_within(text, index, [torch.arange(200)])
    nearest = (cosines - 9 * torch.eye(200)).argmax(1)
    assert torch.equal(ranks.hit_at(1) == 1, index[nearest] == index)
    first, second = torch.arange(0, 200, 5), torch.arange(1, 200, 5)
    hits = metrics.caption_pair_ranks(text, first, second).hit_at(1)
    assert torch.equal(hits == 1, cosines[first][:, second].argmax(1) == torch.arange(40))
    assert 0 < hits.mean() < ranks.hit_at(1).mean() < 1


def test_captions_that_are_all_alike_score_chance(small_blocks):
    index = torch.tensor([0, 0, 1, 1, 1, 2])
    text = torch.randn(1, 3).expand(6, 3)
    [ranks] = metrics.caption_ranks_within(text, index, [torch.arange(6)])
    assert ranks.hit_at(1).tolist() == pytest.approx([1 / 5, 1 / 5, 2 / 5, 2 / 5, 2 / 5, 0])
    pair = metrics.caption_pair_ranks(text, torch.tensor([0, 2]), torch.tensor([1, 3]))
    assert pair.hit_at(1).tolist() == [0.5, 0.5]


def test_expected_rank_counts_from_one():
    image = torch.eye(3)
    ranks = metrics.retrieval_ranks(image, image[[1, 0, 2]], torch.arange(3))
    assert ranks[0].expected().tolist() == [2.5, 2.5, 1.0]  # own score 0 ties with another's
    assert metrics.retrieval_ranks(image, image, torch.arange(3))[1].expected().tolist() == [1.0, 1.0, 1.0]


def test_an_image_without_captions_is_a_distractor_that_is_never_found():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    to_text, to_image = metrics.retrieval_ranks(image, image[:1], torch.tensor([0]))
    assert to_text.hit_at(10).tolist() == [1.0, 0.0]
    assert to_text.expected().tolist() == [1.0, 2.0]
    assert to_image.hit_at(1).tolist() == [1.0]


# ---- zero-shot ----


def test_class_embeddings_average_directions_not_vectors():
    prompts = torch.tensor([[[2.0, 0.0], [0.0, 0.5]], [[0.0, 1.0], [0.0, 3.0]]])
    expected = torch.tensor([[2**-0.5, 2**-0.5], [0.0, 1.0]])
    assert torch.allclose(metrics.class_embeddings(prompts), expected)


def test_classification_equals_a_slow_loop(small_blocks):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    classes = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (30,), generator=generator)
    found = metrics.classify(image, classes, labels, 20.0)
    for i, x in enumerate(unit(image)):
        logits = [20 * dot(x, y) for y in unit(classes)]
        order = sorted(range(7), key=lambda c: -logits[c])
        assert found.prediction[i] == order[0]
        total = sum(math.exp(v) for v in logits)
        assert found.confidence[i].item() == pytest.approx(math.exp(max(logits)) / total)
        assert found.ranks.expected()[i] == order.index(labels[i]) + 1


def test_classes_of_one_name_share_the_first_place():
    classes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = metrics.classify(torch.tensor([[1.0, 0.2]]), classes, torch.tensor([1]), 1.0)
    assert found.ranks.hit_at(1).tolist() == [0.5]
    assert found.ranks.hit_at(2).tolist() == [1.0]


def test_centroid_floor_is_how_far_samples_of_one_distribution_lie_apart():
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(12, generator=generator)

    def draw(count):
        return centre + torch.randn(count, 12, generator=generator)

    def distance(one, other):
        return (normalize(one, dim=1).mean(0) - normalize(other, dim=1).mean(0)).square().sum()

    apart = torch.stack([distance(draw(40), draw(90)) for _ in range(400)]).mean().sqrt()
    floors = torch.stack([metrics.centroid_floor(draw(40), draw(90)) for _ in range(50)])
    assert floors.mean().item() == pytest.approx(apart.item(), rel=0.05)
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # variances ½ and ½, two samples on each side
    assert metrics.centroid_floor(one, one).item() == pytest.approx(1.0)
    assert "centroid_floor" in metrics.gap_suite(draw(20), draw(20))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_everywhere(bad):
    """NaN is neither better nor worse than anything, so that its query would stand first."""
    good, index = torch.randn(12, 4), torch.arange(12)
    broken = good.clone()
    broken[[3, 5], 1] = bad
    for measure in (
        lambda: metrics.retrieval_ranks(broken, good, index),
        lambda: metrics.retrieval_ranks(good, broken, index),
        lambda: metrics.classify(broken, good, index, 1.0),
        lambda: metrics.gap_suite(good, broken),
    ):
        with pytest.raises(ValueError, match="2 of 12 rows are not finite"):
            measure()
    with pytest.raises(ValueError, match="class_features: 2 of 12 rows are not finite"):
        metrics.classify(good, metrics.class_embeddings(broken[:, None]), index, 1.0)


def zero_shot_case(count=60, classes=5, width=6, noise=2.0, seed=0):
    """Images around their class's direction, class directions, labels."""
    generator = torch.Generator().manual_seed(seed)
    class_features = torch.randn(classes, width, generator=generator)
    labels = torch.arange(count) % classes
    return class_features[labels] + noise * torch.randn(count, width, generator=generator), class_features, labels


def test_likelihood_is_scikit_learns_log_loss(small_blocks):
    image, classes, labels = zero_shot_case()
    probs = (20 * normalize(image, dim=1).double() @ normalize(classes, dim=1).double().T).softmax(1)
    expected = log_loss(labels, probs, labels=range(5))
    assert metrics.negative_log_likelihood(image, classes, labels, 20.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [0.5, 5.0, 80.0])
def test_the_refitted_temperature_is_the_best_of_a_grid(scale):
    case = zero_shot_case()
    found = metrics.refit_temperature(*case, scale)
    grid = np.exp(np.linspace(-math.log(100), math.log(100), 1501))
    losses = [metrics.negative_log_likelihood(*case, scale / temperature) for temperature in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=math.log(100) / 750)
    loss = metrics.negative_log_likelihood(*case, scale / found)
    assert loss <= min(losses)
    assert loss <= metrics.negative_log_likelihood(*case, scale)
    assert metrics.refit_temperature(*case, scale / found) == pytest.approx(1, abs=1e-3)


def test_one_temperature_changes_no_prediction():
    case = zero_shot_case()
    plain, refitted = (metrics.classify(*case, 80.0 / t) for t in (1.0, metrics.refit_temperature(*case, 80.0)))
    assert torch.equal(plain.prediction, refitted.prediction)
    assert torch.equal(plain.ranks.hit_at(1), refitted.ranks.hit_at(1))
    assert not torch.allclose(plain.confidence, refitted.confidence)


@pytest.mark.parametrize(("labels", "low", "high"), [([0, 1], 0.0099, 0.04), ([1, 0], 99, 101)])
def test_a_temperature_without_a_best_value_stays_within_its_bounds(labels, low, high):
    """All right: the surer the better, until rounding sees no difference. All wrong: as unsure as can be."""
    assert low < metrics.refit_temperature(torch.eye(2), torch.eye(2), torch.tensor(labels), 1.0) < high


def test_calibration_error_equals_binning_by_hand():
    generator = np.random.default_rng(0)
    confidence, correct = generator.random(200), generator.random(200) < 0.5
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    found = metrics.expected_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct))
    assert found.item() == pytest.approx(expected)
    assert metrics.expected_calibration_error(torch.ones(4), torch.ones(4)) == 0


def test_class_means_skip_nothing_and_invent_nothing():
    values = metrics.class_means(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 2]), 3)
    assert values[[0, 2]].tolist() == [0.5, 1.0]
    assert values[1].isnan()


def test_confusions_are_sorted_by_how_often():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    prediction = torch.tensor([2, 2, 1, 0, 1, 0])
    assert metrics.confusions(prediction, labels) == [(0, 2, 2), (0, 1, 1), (1, 0, 1), (2, 0, 1)]
    assert metrics.confusions(labels, labels) == []


# ---- choices ----


def test_cosines_equal_a_slow_loop_and_ties_are_bitwise(small_blocks):
    image, text = random_pairs(dtype=torch.float32)
    text[7] = text[2]
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randint(13, (2, 60), generator=generator)
    found = metrics.cosines(image, text, first, second)
    x, y = unit(image.double()), unit(text.double())
    expected = [dot(x[i], y[j]) for i, j in zip(first.tolist(), second.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    rows = torch.arange(13)
    twins = [metrics.cosines(image, text, rows, torch.full_like(rows, twin)) for twin in (2, 7)]
    assert torch.equal(*twins)
    with pytest.raises(ValueError, match="as many indices"):
        metrics.cosines(image, text, first, second[:-1])
    with pytest.raises(ValueError, match="features of one width"):
        metrics.cosines(image, text[:, :-1], first, second)


def test_a_choice_is_right_only_if_every_right_one_is_strictly_above_every_wrong_one():
    right = torch.tensor([[0.3, 0.2], [0.3, 0.2], [0.3, 0.1], [0.2, 0.2]])
    wrong = torch.tensor([[0.1, 0.1], [0.1, 0.2], [0.2, 0.0], [0.1, 0.0]])
    assert metrics.choice_hits(right, wrong).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("cosines", "expected"),  # rows are images, columns captions
    [
        ([[0.4, 0.1], [0.2, 0.3]], (True, True, True)),
        ([[0.4, 0.3], [0.1, 0.2]], (True, False, False)),
        ([[0.4, 0.1], [0.3, 0.2]], (False, True, False)),
        ([[0.1, 0.4], [0.3, 0.2]], (False, False, False)),
        ([[0.4, 0.2], [0.2, 0.2]], (False, False, False)),
        ([[0.4, 0.4], [0.1, 0.5]], (False, True, False)),
    ],
)
def test_pairs_by_hand(cosines, expected):
    found = metrics.pair_hits(torch.tensor([cosines]))
    assert tuple(bool(hits) for hits in found) == expected
    swapped = metrics.pair_hits(torch.tensor([cosines]).flip(1, 2))
    assert tuple(bool(hits) for hits in swapped) == expected, "which pair is called the first does not matter"
    with pytest.raises(ValueError, match=r"cosines must be \[C, 2, 2\]"):
        metrics.pair_hits(torch.tensor(cosines))
