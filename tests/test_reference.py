"""The oracle's ops against central differences, known answers and independent formulas.

An oracle that is wrong makes every other test worthless, so nothing here uses the package.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import autodiff as ad
import reference_ops as ops
import reference_rl as rl
from autodiff import Tensor
from reference_rope import plain_frequencies


def check_gradient(f: Callable[..., Tensor], *arrays: np.ndarray, step: float = 1e-5) -> None:
    """Every element of every input: autodiff against (f(x + h) - f(x - h)) / 2h."""
    rng = np.random.default_rng(99)
    inputs = [Tensor(np.array(a, dtype=np.float64)) for a in arrays]
    out = f(*inputs)
    weight = rng.standard_normal(out.shape)
    for x, grad in zip(inputs, ad.gradients((out * weight).sum(), inputs)):
        numeric = np.zeros_like(x.data)
        for i in np.ndindex(x.shape):
            kept = x.data[i]
            x.data[i] = kept + step
            above = float((f(*inputs) * weight).sum())
            x.data[i] = kept - step
            below = float((f(*inputs) * weight).sum())
            x.data[i] = kept
            numeric[i] = (above - below) / (2 * step)
        assert np.abs(numeric).max(initial=0.0) > 1e-6, "the output does not depend on this input"
        np.testing.assert_allclose(grad, numeric, rtol=1e-6, atol=1e-8)


@pytest.fixture
def normal() -> Callable[..., np.ndarray]:
    rng = np.random.default_rng(7)
    return lambda *shape: rng.standard_normal(shape)


# ---- autodiff itself

PRIMITIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b + 2.0,
    "sub": lambda a, b: 1.0 - a - b,
    "mul": lambda a, b: a * b * a,
    "div": lambda a, b: a / (b * b + 1.0) + 1.0 / (a * a + 2.0),
    "broadcast": lambda a, b: a[:, :1] * b + b[0],
    "matmul": lambda a, b: a @ b.T,
    "matmul broadcast": lambda a, b: a.reshape(2, 2, 3) @ b.T,
    "exp log": lambda a, b: ad.log(ad.exp(a) + ad.exp(b)),
    "sigmoid": lambda a, b: ad.sigmoid(a * b),
    "softplus": lambda a, b: ad.softplus(3.0 * a) - b,
    "mean": lambda a, b: a.mean(axis=0) * b.mean() + b.sum(axis=1, keepdims=True),
    "where": lambda a, b: ad.where(np.arange(12).reshape(4, 3) % 2 == 0, a, b),
    "minimum": lambda a, b: ad.minimum(a, b) + ad.clip(b, -0.5, 0.5),
    "concat": lambda a, b: ad.concat([a, b, a], axis=1),
    "gather": lambda a, b: a[np.array([0, 3, 3, 1])] * b[[2, 2, 0, 1], [0, 0, 1, 2]].reshape(4, 1),
    "scatter": lambda a, b: ad.scatter_add(a * b, np.array([1, 1, 0, 4]), 5),
    "transpose": lambda a, b: a.reshape(2, 2, 3).transpose(2, 0, 1) * b.reshape(3, 2, 2),
    "softmax": lambda a, b: ad.softmax(a * b) + ad.logsumexp(a),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitive_gradient(name, normal):
    check_gradient(PRIMITIVES[name], normal(4, 3), normal(4, 3))


def test_kinks():
    """clip passes the gradient on its closed interval; a tie goes to the first argument, once."""
    x = Tensor([0.8, 1.2, 1.3])
    assert ad.gradients(ad.clip(x, 0.8, 1.2).sum(), [x])[0].tolist() == [1.0, 1.0, 0.0]
    assert ad.gradients(ad.minimum(x, Tensor(x.data)).sum(), [x])[0].tolist() == [1.0, 1.0, 1.0]
    assert ad.gradients((ad.stop_gradient(x) * x).sum(), [x])[0].tolist() == [0.8, 1.2, 1.3]


# ---- ops: gradients

def test_row_op_gradients(normal):
    ids = np.array([4, 0, -1, 4])
    check_gradient(lambda w: ops.embedding(w, ids) * np.arange(1, 5)[:, None], normal(5, 3))
    check_gradient(lambda x, w: ops.rmsnorm(x, w, 1e-2), normal(4, 6), normal(6))
    check_gradient(lambda x, s, w: ad.concat(ops.rmsnorm_residual(x, s, w, 1e-2)),
                   normal(3, 4), normal(3, 4), normal(4))
    check_gradient(lambda x, w, b: ops.linear(x, w, b), normal(3, 4), normal(5, 4), normal(5))
    check_gradient(ops.swiglu, normal(3, 4), normal(3, 4))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(interleaved, normal):
    positions, inv_freq = np.array([0, 1, 7]), plain_frequencies(100.0, 6)
    check_gradient(lambda x: ops.rope(x, positions, inv_freq, interleaved, 1.2), normal(3, 2, 6))
    x = normal(3, 2, 6)
    y = ops.rope(Tensor(x), positions, inv_freq, interleaved).data
    np.testing.assert_array_equal(y[0], x[0])  # position 0 turns nothing
    z = x[2, 1, 0::2] + 1j * x[2, 1, 1::2] if interleaved else x[2, 1, :3] + 1j * x[2, 1, 3:]
    turned = z * np.exp(7j * 100.0 ** (-np.arange(3) / 3.0))
    got = y[2, 1, 0::2] + 1j * y[2, 1, 1::2] if interleaved else y[2, 1, :3] + 1j * y[2, 1, 3:]
    np.testing.assert_allclose(got, turned, rtol=1e-14)


def test_attention(normal):
    """Packed sequences, four query heads on two key heads, against a loop over single scores."""
    q, k, v = normal(7, 4, 3), normal(7, 2, 3), normal(7, 2, 2)
    spans = ops.pack_spans([3, 0, 4])
    check_gradient(lambda *x: ops.attention(*x, spans, 0.6), q, k, v)
    got = ops.attention(Tensor(q), Tensor(k), Tensor(v), spans, 0.6).data
    for n in range(7):
        first = 0 if n < 3 else 3
        for h in range(4):
            p = np.exp([0.6 * q[n, h] @ k[j, h // 2] for j in range(first, n + 1)])
            np.testing.assert_allclose(got[n, h], p @ v[first:n + 1, h // 2] / p.sum(), rtol=1e-12)


def test_attention_shared_prefix(normal):
    """A prefix shared by two sequences gives the outputs and summed gradients of two copies."""
    q, k, v, weight = normal(7, 2, 3), normal(7, 1, 3), normal(7, 1, 2), normal(7, 2, 2)
    shared = [ops.Span(0, 3), ops.Span(3, 2, 0, 3), ops.Span(5, 2, 0, 3)]
    rows = np.array([0, 1, 2, 3, 4, 0, 1, 2, 5, 6])
    own = [0, 1, 2, 3, 4, 8, 9]
    inputs = [Tensor(x) for x in (q, k, v)]
    together = ops.attention(*inputs, shared, 0.5)
    apart = ops.attention(*[x[rows] for x in inputs], ops.pack_spans([5, 5]), 0.5)[own]
    np.testing.assert_allclose(together.data, apart.data, rtol=1e-13)
    for a, b in zip(ad.gradients((together * weight).sum(), inputs),
                    ad.gradients((apart * weight).sum(), inputs)):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_mla_expand(normal):
    kv, k_rot = normal(3, 2, 5), normal(3, 1, 2)
    check_gradient(lambda a, b: ad.concat(ops.mla_expand(a, b, 3), axis=2), kv, k_rot)
    k, v = ops.mla_expand(Tensor(kv), Tensor(k_rot), 3)
    np.testing.assert_array_equal(k.data[2, 1], [*kv[2, 1, :3], *k_rot[2, 0]])
    np.testing.assert_array_equal(v.data[2, 1], kv[2, 1, 3:])


# ---- the router and the experts

@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalize", [False, True])
def test_router_gradient(scoring, normalize, normal):
    logits, bias = normal(5, 8), 0.3 * normal(8)

    def route(x: Tensor) -> ops.Routing:
        return ops.router(x, 3, bias=bias, n_group=4, topk_group=2, scoring=scoring,
                          normalize=normalize, scaling=2.5)
    assert route(Tensor(logits)).margin > 1e-3  # so that no difference quotient crosses a choice
    check_gradient(lambda x: route(x).gates, logits)
    check_gradient(lambda x: ops.balance_loss(route(x), ops.pack_spans([2, 0, 3]), 7.0), logits)


def test_router_bias_steers_only_the_choice():
    logits = np.log([[0.6 / 0.4, 0.5 / 0.5, 0.2 / 0.8]])  # scores 0.6, 0.5, 0.2
    routing = ops.router(Tensor(logits), 2, bias=np.array([-1.0, 0.0, 0.4]), scaling=2.0)
    assert routing.experts.tolist() == [[2, 1]]  # choices -0.4, 0.5, 0.6
    np.testing.assert_allclose(routing.gates.data, [[2 * 0.2 / 0.7, 2 * 0.5 / 0.7]], rtol=1e-14)
    assert routing.margin == pytest.approx(0.9)


def test_router_groups_and_ties():
    scores = np.array([[0.9, 0.1, 0.6, 0.5, 0.7, 0.4]])  # groups of two: 1.0, 1.1, 1.1 (best 2)
    logits = Tensor(np.log(scores / (1 - scores)))
    by_two = ops.router(logits, 2, bias=np.zeros(6), n_group=3, topk_group=2)
    assert by_two.experts.tolist() == [[4, 2]]
    by_best = ops.router(logits, 2, n_group=3, topk_group=1)  # no bias: a group is its best expert
    assert by_best.experts.tolist() == [[0, 1]]
    tied = ops.router(Tensor(np.zeros((1, 6))), 2, bias=np.zeros(6), n_group=3, topk_group=2)
    assert tied.experts.tolist() == [[0, 1]] and tied.margin == 0.0
    # an excluded group stays out although its biased choices are the only positive ones left
    negative = ops.router(logits, 2, bias=np.array([-2.0] * 4 + [1.0, -2.0]), n_group=3,
                          topk_group=1)
    assert negative.experts.tolist() == [[4, 5]]


def test_experts_ffn(normal):
    """Dispatch and combine against the plain double loop; one expert with no token."""
    x, weights, logits = normal(5, 3), normal(4, 3, 3), normal(5, 4) - [0, 0, 9, 0]

    def moe(x: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
        ffns = [lambda rows, e=e: rows @ weights[e] for e in range(4)]
        return ops.experts_ffn(x, ops.router(logits, 2), ffns)
    check_gradient(moe, x, weights, logits)
    routing = ops.router(Tensor(logits), 2)
    assert 2 not in routing.experts
    want = [sum(routing.gates.data[n, s] * x[n] @ weights[e] for s, e in enumerate(row))
            for n, row in enumerate(routing.experts)]
    np.testing.assert_allclose(moe(*map(Tensor, (x, weights, logits))).data, want, rtol=1e-13)
    plan = ops.dispatch(np.array([[3, 0], [0, 1], [3, 1]]), 4)
    assert plan.rows.tolist() == [0, 1, 1, 2, 0, 2] and plan.offsets.tolist() == [0, 2, 4, 4, 6]
    assert plan.slots.tolist() == [1, 0, 1, 1, 0, 0]


def test_balance_loss_of_even_and_uneven_load():
    """Even scores over E experts give exactly 1; all the weight on the chosen expert gives E/K."""
    even = ops.Routing(np.array([[0], [1], [2], [3]]), Tensor(np.ones((4, 1))),
                       Tensor(np.full((4, 4), 0.3)), 0.0)
    assert float(ops.balance_loss(even, ops.pack_spans([4]), 4.0)) == pytest.approx(1.0)
    piled = ops.Routing(np.zeros((4, 1), dtype=int), Tensor(np.ones((4, 1))),
                        Tensor(np.eye(4)[[0, 0, 0, 0]]), 0.0)
    assert float(ops.balance_loss(piled, ops.pack_spans([4]), 8.0)) == pytest.approx(4.0 / 2)
    assert ops.bias_update(np.zeros(3), np.array([4, 1, 1]), 0.1).tolist() == [-0.1, 0.1, 0.1]


# ---- log-probs and truncation

def test_truncation_by_hand():
    logits = np.log([0.1, 0.4, 0.2, 0.2, 0.1])  # order: 1, 2, 3, 0, 4

    def kept(**how: float) -> list[int]:
        return np.flatnonzero(ops.truncation(logits, how.pop("temperature", 1.0), **how)).tolist()
    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [1, 2]  # the tie of 2 and 3 goes to the lower id
    assert kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.39) == [1] and kept(top_p=0.41) == [1, 2] and kept(top_p=0.61) == [1, 2, 3]
    assert kept(top_k=2, top_p=0.65) == [1]  # renormalised after top-k: 2/3, 1/3
    assert kept(min_p=0.4) == [1, 2, 3] and kept(min_p=0.6) == [1]
    assert kept(temperature=0.5, min_p=0.4) == [1]  # squares: 0.16, 0.04, ...
    assert kept(temperature=0.0, top_k=1, top_p=0.1, min_p=0.9) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7}, {"top_k": 3}, {"temperature": 0.0},
                                 {"temperature": 1.3, "top_k": 6, "top_p": 0.8, "min_p": 0.15}])
def test_token_logprobs(how, normal):
    logits, targets = 2.0 * normal(5, 8), np.array([7, 0, 3, 3, 1])
    check_gradient(lambda z: ops.token_logprobs(z, targets, **how)[0], logits)
    check_gradient(lambda z: ops.token_logprobs(z, targets, **how)[1], logits)
    logp, entropy = (x.data for x in ops.token_logprobs(Tensor(logits), targets, **how))
    temperature = how.get("temperature", 1.0)
    for n, target in enumerate(targets):
        keep = ops.truncation(logits[n], **{"temperature": 1.0, **how})
        keep[target] = True
        p = np.where(keep, np.exp(logits[n] / (temperature or 1.0)), 0.0)
        p /= p.sum()
        assert logp[n] == pytest.approx(np.log(p[target]), rel=1e-12)
        assert entropy[n] == pytest.approx(-sum(x * np.log(x) for x in p if x), rel=1e-12)


# ---- advantages, weights, losses: the worked examples of the papers' formulas

def test_advantages_four_of_sixteen():
    rewards = [1.0] * 4 + [0.0] * 12
    for ddof, right, wrong in ((0, 1.7320508, -0.5773503), (1, 1.6770510, -0.5590170)):
        a = rl.group_advantages(rewards, [0] * 16, ddof=ddof, eps=0.0)
        np.testing.assert_allclose(a, [right] * 4 + [wrong] * 12, atol=1e-7)
    a = rl.group_advantages(rewards, [0] * 16)
    assert a[0] == pytest.approx(0.75 / (np.sqrt(0.2) + 1e-4), rel=1e-14)
    assert rl.group_advantages(rewards, [0] * 16, "none").tolist() == [0.75] * 4 + [-0.25] * 12


def test_advantages_groups_missing_and_equal():
    rewards = [1.0, 0.0, None, 0.1, 0.1, 0.1, float("nan"), 5.0]
    groups = [4, 4, 4, 2, 2, 2, 9, 9]
    a = rl.group_advantages(rewards, groups, eps=0.0)
    np.testing.assert_allclose(a, [0.5 ** 0.5, -(0.5 ** 0.5), 0, 0, 0, 0, 0, 0], rtol=1e-14)
    known = np.array([1.0, 0.0, 0.1, 0.1, 0.1, 5.0])
    batch = rl.group_advantages(rewards, groups, "batch", eps=0.0)
    np.testing.assert_allclose(batch[:2], [0.5 / known.std(ddof=1), -0.5 / known.std(ddof=1)])
    assert not batch[2:].any()
    assert not rl.group_advantages([None, None], [0, 0]).any()


def test_token_weights():
    lengths = [2, 4, 0, 6]
    grpo = rl.token_weights(lengths, "grpo")
    np.testing.assert_allclose(grpo, [1 / 8, 1 / 16, 0, 1 / 24])
    np.testing.assert_allclose(rl.token_weights(lengths, "dapo"), [1 / 12, 1 / 12, 0, 1 / 12])
    dr = rl.token_weights(lengths, "dr_grpo", max_completion_length=10)
    np.testing.assert_allclose(dr, [1 / 40, 1 / 40, 0, 1 / 40])
    bnpo = rl.token_weights(lengths, "bnpo", local_batch=2)
    np.testing.assert_allclose(bnpo, [1 / 12, 1 / 12, 0, 1 / 12])
    np.testing.assert_allclose(rl.token_weights(lengths, "bnpo", local_batch=3),
                               [1 / 12, 1 / 12, 0, 1 / 12])
    short = rl.token_weights([1, 1, 4], "bnpo", local_batch=2)
    np.testing.assert_allclose(short, [1 / 4, 1 / 4, 1 / 8])
    keep = [True, False, True, True]
    np.testing.assert_allclose(rl.token_weights(lengths, "grpo", keep=keep), [1 / 8, 0, 0, 1 / 24])
    np.testing.assert_allclose(rl.token_weights(lengths, "dapo", keep=keep), [1 / 8, 0, 0, 1 / 8])
    with pytest.raises(ValueError, match="ppo"):
        rl.token_weights(lengths, "ppo")


def test_k3_values_and_gradient():
    d = np.array([-1, -0.1, 0, 0.1, 1])
    logp = Tensor(np.zeros(5))
    values = rl.kl_estimate(logp, d)
    np.testing.assert_allclose(values.data, [.3678794, .0048374, 0, .0051709, .7182818], atol=5e-8)
    grad, = ad.gradients(values.sum(), [logp])
    np.testing.assert_allclose(grad, 1 - np.exp(d), rtol=1e-14)


def test_clip_loss_gradient_is_the_closed_form():
    """d loss / d logp = -(rho A) [not clipped] + beta (1 - e^d)."""
    ratio = np.array([1.3, 1.3, 0.7, 0.7, 1.0, 1.25, 0.81])
    advantages = np.array([1.0, -1.0, 1.0, -1.0, 2.0, 1.0, -1.0])
    ref, old = np.full(7, -1.1), np.full(7, -1.0)
    logp = Tensor(old + np.log(ratio))
    out = rl.policy_loss(logp, old, advantages, ref_logp=ref, epsilon=0.2, epsilon_high=0.28,
                         beta=0.3)
    assert out.clipped.tolist() == [1, 0, 0, -1, 0, 0, 0]
    grad, = ad.gradients(out.loss.sum(), [logp])
    want = -ratio * advantages * (out.clipped == 0) + 0.3 * (1 - np.exp(ref - logp.data))
    np.testing.assert_allclose(grad, want, rtol=1e-12)
    surrogate = np.array([1.28, -1.3, 0.7, -0.8, 2.0, 1.25, -0.81])
    np.testing.assert_allclose(out.loss.data, -surrogate + 0.3 * out.kl, rtol=1e-12)


def test_the_other_forms_are_the_closed_forms():
    """delta, cispo, k1, k2 and the KL times the ratio, against derivatives written out."""
    ratio = np.array([1.25, 1.4, 3.0, 5.0, 0.7, 1.1])
    advantages = np.array([1.0, -1.0, -1.0, -1.0, -1.0, 1.0])
    ref, old = np.full(6, -1.2), np.full(6, -1.0)

    def run(**options):
        logp = Tensor(old + np.log(ratio))
        out = rl.policy_loss(logp, old, advantages, ref_logp=ref, **options)
        return out, ad.gradients(out.loss.sum(), [logp])[0], ref - logp.data
    out, grad, _ = run(delta=4.0)
    assert out.clipped.tolist() == [1, 0, 0, 1, -1, 0]
    np.testing.assert_allclose(out.loss.data, [-1.2, 1.4, 3.0, 4.0, 0.8, -1.1])
    np.testing.assert_allclose(grad, [0, 1.4, 3.0, 0, 0, -1.1])
    out, grad, _ = run(delta=1.05)  # below the range: it is the bound where A > 0, alone there
    assert out.clipped.tolist() == [1, 1, 1, 1, -1, 1]
    np.testing.assert_allclose(out.loss.data, [-1.05, 1.2, 1.2, 1.2, 0.8, -1.05])
    out, grad, _ = run(form="cispo", epsilon_high=2.0)
    weight = np.minimum(ratio, 2.0)
    assert out.clipped.tolist() == [0, 0, 1, 1, 0, 0]
    np.testing.assert_allclose(out.loss.data, -weight * advantages * (old + np.log(ratio)))
    np.testing.assert_allclose(grad, -weight * advantages)
    policy = run(epsilon=100.0)[1]
    for kind, value, slope in (("k1", lambda d: -d, lambda d: np.ones(6)),
                               ("k2", lambda d: d * d / 2, lambda d: -d),
                               ("k3", lambda d: np.expm1(d) - d, lambda d: -np.expm1(d))):
        out, grad, d = run(epsilon=100.0, beta=0.5, kl=kind)
        np.testing.assert_allclose(out.kl, value(d), rtol=1e-12)
        np.testing.assert_allclose(grad, policy + 0.5 * slope(d), rtol=1e-12)
        _, grad, d = run(epsilon=100.0, beta=0.5, kl=kind, kl_ratio=True)
        np.testing.assert_allclose(grad, policy + 0.5 * ratio * (value(d) + slope(d)), rtol=1e-12)


def test_gspo_is_the_clipped_loss_with_another_old(normal):
    """The gradient of min(s A, clip(s) A), s a function of all log-probs of the sequence (GSPO eq. 5
    and 7), is the one of GSPO-token with the sequence's tokens averaged (eq. 13-14)."""
    old, A = -np.abs(normal(7)) - 0.5, 1.5
    logp = Tensor(old + 0.1 * normal(7))
    s = ad.exp((logp - old).sum() * (1 / 7))
    whole = -ad.minimum(s * A, ad.clip(s, 0.8, 1.2) * A)
    want, = ad.gradients(whole, [logp])
    out = rl.policy_loss(logp, rl.sequence_old_logp(logp.data, old), np.full(7, A))
    np.testing.assert_allclose(out.ratio, np.full(7, s.data), rtol=1e-14)
    np.testing.assert_allclose(out.loss.data, np.full(7, whole.data), rtol=1e-14)
    grad, = ad.gradients((out.loss * (1 / 7)).sum(), [logp])
    assert np.any(want != 0)
    np.testing.assert_allclose(grad, want, rtol=1e-13)
    same = rl.sequence_old_logp(old, old)
    assert same.tobytes() == old.tobytes()


def test_clip_loss_with_the_wide_clip_of_r1():
    """epsilon 10: the lower bound never binds, a positive advantage is cut above a ratio of 11."""
    ratio, advantages = np.array([10.9, 11.1, 11.1, 1e-3]), np.array([1.0, 1.0, -1.0, -1.0])
    out = rl.policy_loss(Tensor(np.log(ratio)), np.zeros(4), advantages, epsilon=10.0)
    assert out.clipped.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(out.loss.data, [-10.9, -11.0, 11.1, 1e-3])


def test_clip_loss_masks_and_entropy(normal):
    poison = np.array([0.1, np.nan])
    logp, entropy = Tensor([-1.0, np.nan]), Tensor([0.5, np.nan])
    out = rl.policy_loss(logp, poison, poison, ref_logp=poison, beta=0.1, entropy=entropy,
                         entropy_coef=0.01, mask=np.array([True, False]))
    grads = ad.gradients(out.loss.sum(), [logp, entropy])
    assert out.loss.data[1] == 0.0 and grads[0][1] == 0.0 and np.isfinite(grads[0][0])
    assert grads[1].tolist() == [-0.01, 0.0]


def test_reward_model_losses(normal):
    check_gradient(rl.pairwise_loss, normal(6))
    labels = np.array([1.0, 0.0, 0.25])
    check_gradient(lambda s: rl.pointwise_loss(s, labels), normal(3))
    apart = rl.pairwise_loss(Tensor([2.0, -1.0])).data
    assert apart == pytest.approx(np.log(1 + np.exp(-3)))
    p = 1 / (1 + np.exp(-2.0))
    assert rl.pointwise_loss(Tensor([2.0]), np.array([0.25])).data == pytest.approx(
        -0.25 * np.log(p) - 0.75 * np.log(1 - p))


# ---- update and random numbers

def test_adamw_first_steps_by_hand():
    p, m, v = rl.adamw(np.array([2.0]), np.array([0.5]), np.zeros(1), np.zeros(1), 1,
                       learning_rate=0.1, eps=0.0, weight_decay=0.01)
    np.testing.assert_allclose([p[0], m[0], v[0]], [2 - 0.1 - 0.1 * 0.02, 0.05, 0.0125])
    p, m, v = rl.adamw(p, np.array([-1.0]), m, v, 2, learning_rate=0.1, weight_decay=0.0)
    np.testing.assert_allclose([m[0], v[0]], [-0.055, 0.061875])
    direction = -0.055 / 0.19 / (np.sqrt(0.061875 / 0.0975) + 1e-8)
    np.testing.assert_allclose(p[0], 1.898 - 0.1 * direction, rtol=1e-14)


def test_clip_by_global_norm():
    norm = rl.global_norm([np.array([3.0, 0.0]), np.array([[4.0]])])
    assert norm == 5.0 and rl.clip_scale(norm, 1.0) == 0.2 and rl.clip_scale(norm, 5.0) == 1.0


@pytest.mark.parametrize("counter, key, want", [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
])
def test_philox_known_answers(counter, key, want):
    """The philox4x32 vectors of ten rounds that Random123 publishes in kat_vectors."""
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, want)]
    assert rl.philox4x32_10(words[0], words[1]) == tuple(words[2])
