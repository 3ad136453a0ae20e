"""The identities of the method, each against an independent reference: slow loops, hand-sized cases, autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline_lib import losses

B, D = 7, 5


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(B, D, dtype=torch.float64, generator=generator) * 2 for _ in range(4)]


def slow_hycd(s, t, alpha, temperature):
    """The equation, entry by entry, in Python floats."""

    def softmax(row):
        top = max(row)
        exps = [math.exp(x - top) for x in row]
        return [e / sum(exps) for e in exps]

    total = 0.0
    for student, teacher in ((s, t), (s.T, t.T)):
        for i in range(len(student)):
            p = softmax((student[i] / temperature).tolist())
            q = softmax((teacher[i] / temperature).tolist())
            for j in range(len(p)):
                blended = alpha * (i == j) + (1 - alpha) * q[j]
                if blended > 0:
                    total += blended * (math.log(blended) - math.log(p[j])) / len(p) / 2
    return temperature**2 * total


def gradient(value, tensor):
    return torch.autograd.grad(value, tensor)[0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_hycd_equals_slow_loop(pair, alpha, temperature):
    f, g, big_f, big_g = pair
    s, t = f @ g.T, big_f @ big_g.T
    value = losses.hycd_loss(s, t, alpha=alpha, temperature=temperature)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(slow_hycd(s, t, alpha, temperature), rel=1e-12)


def test_hycd_alpha_zero_and_student_is_teacher_is_zero(pair):
    s = pair[0] @ pair[1].T
    assert losses.hycd_loss(s, s, alpha=0.0).item() == pytest.approx(0.0, abs=1e-14)


def test_hycd_alpha_one_is_contrastive(pair):
    s, t = pair[0] @ pair[1].T, pair[2] @ pair[3].T
    torch.testing.assert_close(losses.hycd_loss(s, t, alpha=1.0), losses.contrastive_loss(s), rtol=1e-13, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_hycd_gradient_is_blend_of_infonce_and_self_kd(pair, alpha):
    """At T = 1: grad HyCD = alpha grad InfoNCE + (1 - alpha) grad self-KD, exactly."""
    s = (pair[0] @ pair[1].T).requires_grad_()
    t = pair[2] @ pair[3].T
    hybrid = gradient(losses.hycd_loss(s, t, alpha=alpha), s)
    blend = alpha * gradient(losses.contrastive_loss(s), s)
    blend += (1 - alpha) * gradient(losses.hycd_loss(s, t, alpha=0.0), s)
    torch.testing.assert_close(hybrid, blend, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_hycd_gradient_at_the_teacher_is_scaled_infonce(pair, temperature):
    """Student = teacher: grad = alpha grad (T^2 InfoNCE(s / T)); self-KD adds nothing."""
    s = (pair[0] @ pair[1].T).requires_grad_()
    hybrid = gradient(losses.hycd_loss(s, s.detach(), alpha=0.5, temperature=temperature), s)
    infonce = gradient(temperature**2 * losses.contrastive_loss(s / temperature), s)
    torch.testing.assert_close(hybrid, 0.5 * infonce, rtol=1e-11, atol=1e-15)


def test_hycd_is_symmetric_in_the_modalities(pair):
    s, t = pair[0] @ pair[1].T, pair[2] @ pair[3].T
    torch.testing.assert_close(losses.hycd_loss(s, t), losses.hycd_loss(s.T, t.T))


def test_teacher_gets_no_gradient(pair):
    f, g, big_f, big_g = (x.clone().requires_grad_() for x in pair)
    s, t = f @ g.T, big_f @ big_g.T
    total = losses.hycd_loss(s, t) + losses.logit_kd_loss(s, t) + losses.feature_kd_loss(f, big_f)
    total.backward()
    assert big_f.grad is None
    assert big_g.grad is None
    assert f.grad.abs().sum() > 0


def test_normalised_features_at_t1_make_the_teacher_uniform():
    """Why `raw` logits or `scaled_cosine`: cosines at T = 1 give a teacher within 1 % of the uniform distribution."""
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(64, 512, generator=generator), dim=-1) for _ in range(2))
    entropy = torch.distributions.Categorical(logits=x @ y.T).entropy().mean()
    assert entropy > 0.99 * math.log(64)


def test_rafa_by_hand():
    f, g, z = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.0]])
    assert losses.rafa_loss(f, g, z).item() == pytest.approx((1 + 4) / 2 + 1 / 2)
    assert losses.rafa_loss(f, g, z, reduction="paper").item() == pytest.approx((5 + 1) / 2)


def test_rafa_zero_at_the_reference_and_paper_ratio(pair):
    f, g, z, _ = pair
    assert losses.rafa_loss(z, z, z).item() == 0.0
    ratio = losses.rafa_loss(f, g, z, reduction="paper") / losses.rafa_loss(f, g, z)
    assert ratio.item() == pytest.approx(D / 2)


def test_rafa_expected_gradient_is_shrinkage_on_raw_and_nothing_along_the_sphere():
    """Mean over many z: raw gradient = 2 f / (B D); tangential part of the normalised gradient = 0."""
    generator = torch.Generator().manual_seed(2)
    f = (torch.randn(2, 3, dtype=torch.float64, generator=generator) * 4).requires_grad_()
    unit = F.normalize(f, dim=-1)
    draws = 40_000
    z = torch.randn(draws, 2, 3, dtype=torch.float64, generator=generator)
    z = torch.cat([z, -z])  # antithetic: the zero mean holds exactly, not only on average
    raw = gradient((f - z).square().mean(), f)
    torch.testing.assert_close(raw, 2 * f.detach() / f.numel(), rtol=1e-9, atol=1e-12)
    normalised = gradient((unit - z).square().mean(), f)
    assert normalised.abs().max() < 1e-12


def test_rafa_batch_of_one_and_independent_references():
    f, g = torch.randn(1, 4), torch.randn(1, 4)
    z = torch.randn(2, 1, 4)
    expected = F.mse_loss(f, z[0]) + F.mse_loss(g, z[1])
    torch.testing.assert_close(losses.rafa_loss(f, g, z), expected)
    assert torch.isfinite(losses.hycd_loss(f @ g.T, f @ g.T))


def test_contrastive_equals_slow_loop(pair):
    s = pair[0] @ pair[1].T
    slow = 0.0
    for i in range(B):
        slow -= math.log(math.exp(s[i, i]) / sum(math.exp(x) for x in s[i])) / B / 2
        slow -= math.log(math.exp(s[i, i]) / sum(math.exp(x) for x in s[:, i])) / B / 2
    assert losses.contrastive_loss(s).item() == pytest.approx(slow, rel=1e-12)


def test_mixture_lies_on_the_arc(pair):
    x, y = F.normalize(pair[0], dim=-1), F.normalize(pair[1], dim=-1)
    for share in (0.0, 0.3, 1.0):
        mixed = losses.geodesic_mixture(x, y, torch.tensor(share, dtype=torch.float64))
        torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(B, dtype=torch.float64))
        angle, part = (x * y).sum(-1).acos(), (mixed * y).sum(-1).clamp(-1, 1).acos()
        torch.testing.assert_close(part, share * angle, rtol=1e-6, atol=1e-7)


def test_mixup_contrastive_equals_slow_loop(pair):
    x, y = F.normalize(pair[0], dim=-1), F.normalize(pair[1], dim=-1)
    scale, share = 3.0, 0.4
    theta = (x * y).sum(-1).acos()
    mixed = [
        x[j] * math.sin(share * theta[j]) / math.sin(theta[j])
        + y[j] * math.sin((1 - share) * theta[j]) / math.sin(theta[j])
        for j in range(B)
    ]
    slow = 0.0
    for own in (x, y):
        for i in range(B):
            row = [scale * float((x[i] @ y[i]) if j == i else own[i] @ mixed[j]) for j in range(B)]
            slow -= math.log(math.exp(row[i]) / sum(map(math.exp, row))) / B / 2
    value = losses.mixup_contrastive_loss(x, y, torch.tensor(scale), torch.tensor(share, dtype=torch.float64))
    assert value.item() == pytest.approx(slow, rel=1e-9)


def test_mixup_survives_identical_pairs():
    x = F.normalize(torch.randn(4, 8), dim=-1).requires_grad_()
    value = losses.mixup_contrastive_loss(x, x.detach(), torch.tensor(10.0), torch.tensor(0.5))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()


def test_kd_losses_by_hand():
    a, b = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert losses.logit_kd_loss(a, b).item() == pytest.approx(10 / 4)
    assert losses.feature_kd_loss(a, b).item() == pytest.approx(10 / 4)
    torch.testing.assert_close(losses.logit_kd_loss(a, b), losses.logit_kd_loss(a.T, b.T))
    assert losses.alignment_loss(a, b).item() == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.hycd_loss(torch.zeros(2, 3), torch.zeros(2, 3)), "square"),
        (lambda: losses.hycd_loss(torch.zeros(2, 2), torch.zeros(3, 3)), r"\(2, 2\), found \(3, 3\)"),
        (lambda: losses.hycd_loss(torch.zeros(2, 2), torch.zeros(2, 2), alpha=1.1), "alpha"),
        (lambda: losses.hycd_loss(torch.zeros(2, 2), torch.zeros(2, 2), alpha=-0.1), "alpha"),
        (lambda: losses.hycd_loss(torch.zeros(2, 2), torch.zeros(2, 2), temperature=0.0), "temperature"),
        (lambda: losses.rafa_loss(torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(2, 2)), "one shape"),
        (lambda: losses.rafa_loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(3, 2)), "reference"),
        (lambda: losses.rafa_loss(*[torch.zeros(2, 2)] * 3, reduction="sum"), "reduction"),
        (lambda: losses.contrastive_loss(torch.zeros(4)), "square"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
