"""fakes.py - a stand-in for Model that a trainer cannot tell from it: a table of bigrams in NumPy.

log pi(next | last) = log softmax(table[last] / temperature). Same methods, same return shapes,
exact gradients, draws that are a function of (seed, step, sample id, generation). Trainers are
tested with it in milliseconds; what the real engine computes is tested elsewhere. Knows no
truncated sampling.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from r1grpo.model_config import ModelConfig


class FakeLoss:
    def __init__(self, value, tokens, stats=None, logprobs=None):
        self.value, self.tokens = value, tokens
        self.stats, self.logprobs = stats or {}, logprobs or []

    def __float__(self):
        return float(self.value)


class FakeSession:
    """All tokens are drawn at once and handed out in slices."""

    def __init__(self, rollout):
        self._all, self._shown = rollout, [0] * len(rollout.completion_ids)
        self._kept = [None] * len(rollout.completion_ids)
        self._told = set()

    def _length(self, i):
        return self._kept[i] if self._kept[i] is not None else len(self._all.completion_ids[i])

    @property
    def done(self):
        return all(shown >= self._length(i) for i, shown in enumerate(self._shown))

    def run(self, n):
        changed = [i for i, shown in enumerate(self._shown) if shown < self._length(i)]
        for i in changed:
            self._shown[i] = min(self._length(i), self._shown[i] + n)
        return changed

    def ids(self, i):
        return self._all.completion_ids[i][:self._shown[i]].tolist()

    def stop(self, i, keep):
        self._kept[i] = self._shown[i] = keep

    def ended(self):
        new = [i for i, shown in enumerate(self._shown) if shown >= self._length(i) and i not in self._told]
        self._told.update(new)
        return new

    def finish_reason(self, i):
        return "stop" if self._kept[i] is not None else self._all.finish_reasons[i]

    def rollout(self):
        ids = [one[:self._length(i)] for i, one in enumerate(self._all.completion_ids)]
        logp = [one[:self._length(i)] for i, one in enumerate(self._all.logprobs)]
        why = [self.finish_reason(i) for i in range(len(ids))]
        return SimpleNamespace(completion_ids=ids, logprobs=logp, finish_reasons=why, drafts=(0, 0))


class FakeModel:
    def __init__(self, vocab_size, eos_token_id=2, seed=0):
        rng = np.random.default_rng(seed)
        self.config = ModelConfig(vocab_size, hidden_size=4, num_hidden_layers=1,
                                  num_attention_heads=1, intermediate_size=4,
                                  max_position_embeddings=64, eos_token_id=eos_token_id)
        self.dtype, self.device_name, self.lora, self.exact = "float32", "cpu", None, True
        self.table = (0.1 * rng.standard_normal((vocab_size, vocab_size))).astype(np.float32)
        self.head = np.zeros(vocab_size, np.float32)  # score of the last token
        self.reset_optimizer()
        self.zero_grad()
        self.calls = []  # keywords of each policy_gradient

    # ---- weights ----

    def state_dict(self):
        return {"table": self.table.copy(), "head": self.head.copy()}

    def load_state_dict(self, state):
        self.table, self.head = state["table"].copy(), state["head"].copy()

    trained_state, load_trained_state = state_dict, load_state_dict

    def check_state(self, state, optimizer=None):
        for given, own in ((state, self.state_dict()), (optimizer, self.optimizer_state())):
            if given is not None and given.keys() != own.keys():
                raise ValueError(f"state differs in {sorted(given.keys() ^ own.keys())}")

    def reset_optimizer(self):
        self._m = [np.zeros_like(self.table), np.zeros_like(self.head)]
        self._v = [np.zeros_like(self.table), np.zeros_like(self.head)]
        self._t = 0

    def optimizer_state(self):
        return {"m0": self._m[0].copy(), "m1": self._m[1].copy(), "v0": self._v[0].copy(),
                "v1": self._v[1].copy(), "t": np.array([self._t], np.int64)}

    def load_optimizer_state(self, state):
        self._m = [state["m0"].copy(), state["m1"].copy()]
        self._v = [state["v0"].copy(), state["v1"].copy()]
        self._t = int(state["t"][0])

    def clone(self):
        other = FakeModel(self.config.vocab_size, self.config.eos_token_id)
        other.copy_weights_from(self)
        return other

    def freeze(self, offload=None):
        return self.clone()

    def copy_weights_from(self, other, alpha=1.0):
        mine = self.state_dict()
        self.load_state_dict({k: alpha * v + (1 - alpha) * mine[k]
                              for k, v in other.state_dict().items()})

    # ---- sampling and log-probs ----

    def _logp(self, temperature=1.0):
        x = self.table.astype(np.float64) / temperature
        x = x - x.max(axis=1, keepdims=True)
        return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)

    def generate(self, prompts, num_generations=1, max_new_tokens=128, temperature=1.0, top_k=0,
                 top_p=1.0, min_p=0.0, seed=0, step=0, stop_token_ids=None, sample_ids=None,
                 speculative=False):
        logp = self._logp(temperature)
        stops = (self.config.eos_token_id,) if stop_token_ids is None else stop_token_ids
        out = SimpleNamespace(completion_ids=[], logprobs=[], finish_reasons=[], drafts=(0, 0))
        for p, prompt in enumerate(prompts):
            for g in range(num_generations):
                rng = np.random.default_rng([seed, step, (sample_ids or range(len(prompts)))[p], g])
                last, ids, why = prompt[-1], [], "length"
                while len(ids) < max_new_tokens and why == "length":
                    edges = np.cumsum(np.exp(logp[last].astype(np.float64)))
                    token = min(int(np.searchsorted(edges, rng.random())), len(edges) - 1)
                    ids.append(token)
                    why = "stop" if token in stops else "length"
                    last = token
                before = [prompt[-1], *ids[:-1]]
                out.completion_ids.append(np.array(ids, np.int32))
                out.logprobs.append(logp[before, ids])
                out.finish_reasons.append(why)
        return out

    def session(self, prompts, num_generations, max_new_tokens, **options):
        return FakeSession(self.generate(prompts, num_generations, max_new_tokens, **options))

    def _pairs(self, prompts, completions):
        ratio = len(completions) // len(prompts)
        return [(np.array([prompts[i // ratio][-1], *ids[:-1]]), np.array(ids))
                for i, ids in enumerate(completions)]

    def logprobs(self, prompt_ids, completion_ids, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
        logp = self._logp(temperature)
        return [logp[before, ids] for before, ids in self._pairs(prompt_ids, completion_ids)]

    # ---- gradients ----

    def zero_grad(self):
        self._g = [np.zeros(self.table.shape), np.zeros(self.head.shape)]

    def _add(self, before, ids, dlogp, temperature):
        p = np.exp(self._logp(temperature).astype(np.float64))[before]
        d = -p * dlogp[:, None]
        d[np.arange(len(ids)), ids] += dlogp
        np.add.at(self._g[0], before, d / temperature)

    def sft_gradient(self, prompt_ids, completion_ids, weights=None, total_tokens=None,
                     micro_batch_tokens=None, mtp_coef=0.0, balance_coef=0.0, recompute=False):
        logp = self.logprobs(prompt_ids, completion_ids)
        w = weights or [np.ones(len(one)) for one in completion_ids]
        total = total_tokens or sum(float(np.sum(one)) for one in w)
        for (before, ids), one in zip(self._pairs(prompt_ids, completion_ids), w):
            self._add(before, ids, -np.asarray(one, np.float64) / total, 1.0)
        return FakeLoss(-sum(float(np.dot(a, b)) for a, b in zip(w, logp)) / total,
                        sum(map(len, logp)), {}, logp)

    def policy_gradient(self, prompt_ids, completion_ids, advantages, weights, old_logprobs,
                        ref_logprobs=None, epsilon=0.2, epsilon_high=None, beta=0.0,
                        temperature=1.0, total_tokens=None, **options):
        self.calls.append(dict(options, prompt_ids=prompt_ids, completion_ids=completion_ids,
                               advantages=advantages, weights=weights, ref_logprobs=ref_logprobs,
                               total_tokens=total_tokens, beta=beta, temperature=temperature,
                               epsilon_high=epsilon_high))
        logp = self.logprobs(prompt_ids, completion_ids, temperature)
        high = 1 + (epsilon if epsilon_high is None else epsilon_high)
        loss, gap, tokens, kl = 0.0, 0.0, 0, 0.0
        for i, (before, ids) in enumerate(self._pairs(prompt_ids, completion_ids)):
            ratio = np.exp(logp[i].astype(np.float64) - old_logprobs[i])
            a, w = np.asarray(advantages[i], np.float64), float(weights[i]) / total_tokens
            clipped = np.where(a > 0, ratio > high, (ratio < 1 - epsilon) & (a < 0))
            dlogp = -ratio * a * ~clipped
            value = -np.minimum(ratio * a, np.clip(ratio, 1 - epsilon, high) * a)
            if ref_logprobs is not None:
                d = ref_logprobs[i].astype(np.float64) - logp[i]
                value, dlogp = value + beta * (np.exp(d) - d - 1), dlogp + beta * (1 - np.exp(d))
                kl += float((np.exp(d) - d - 1).sum())
            loss += w * float(value.sum())
            self._add(before, ids, w * dlogp, temperature)
            if w:
                gap = max(gap, float(np.abs(logp[i] - old_logprobs[i]).max()))
                tokens += len(ids)
        if not tokens:
            return FakeLoss(0.0, 0, {}, logp)
        stats = {"logp_gap_max": gap, "logp_gap_tokens": tokens, "entropy": 1.0,
                 **({} if ref_logprobs is None else {"kl": kl / tokens})}
        return FakeLoss(loss, tokens, stats, logp)

    def score(self, ids_list):
        return np.array([self.head[ids[-2]] for ids in ids_list], np.float32)

    def reward_gradient(self, ids_list, kind="pairwise", labels=None, total=None,
                        micro_batch_tokens=None, recompute=False):
        s, last = self.score(ids_list).astype(np.float64), [ids[-2] for ids in ids_list]
        if kind == "pairwise":
            margin = s[0::2] - s[1::2]
            loss, d = np.log1p(np.exp(-margin)).sum(), np.zeros(len(s))
            d[0::2] = -1 / (1 + np.exp(margin))
            d[1::2] = -d[0::2]
        else:
            loss, d = (np.log1p(np.exp(s)) - labels * s).sum(), 1 / (1 + np.exp(-s)) - labels
        np.add.at(self._g[1], last, d / total)
        return FakeLoss(loss / total, sum(map(len, ids_list)))

    def update(self, learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0,
               max_grad_norm=1.0):
        norm = float(np.sqrt(sum((g ** 2).sum() for g in self._g)))
        if not np.isfinite(norm):
            raise FloatingPointError("gradient norm is not finite")
        self._t += 1
        scale = min(1.0, max_grad_norm / (norm + 1e-12))
        for x, g, m, v in zip((self.table, self.head), self._g, self._m, self._v):
            m += (1 - betas[0]) * (g * scale - m).astype(np.float32)
            v += (1 - betas[1]) * ((g * scale) ** 2 - v).astype(np.float32)
            up = (m / (1 - betas[0] ** self._t)) / (np.sqrt(v / (1 - betas[1] ** self._t)) + eps)
            x -= np.float32(learning_rate) * (up + weight_decay * x).astype(np.float32)
        return norm

    def save_pretrained(self, folder):
        np.save(f"{folder}/table.npy", self.table)
