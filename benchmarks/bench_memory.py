"""Memory of a long sample: what the head over its tokens adds, measured beside the plan.

    python -m benchmarks.bench_memory [--tokens 32768] [--vocab 151936] [--width 64] [--layers 2]

One sample with recomputation, SFT's gradient and an update, twice in processes of their own: with one
token in the loss and with all of them. The difference of their peaks is what the head adds: hidden
states and their gradients, a chunk of logits, vectors. tokens x vocabulary numbers would be 18.5 GiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from r1grpo.model_config import ModelConfig
from r1grpo.plan import plan_memory

_WORK = """
import json, sys
import numpy as np
from r1grpo import Model, ModelConfig
values, tokens, targets = json.loads(sys.argv[1])
model = Model(ModelConfig.from_dict(values))
ids = np.random.default_rng(0).integers(0, values["vocab_size"], tokens)
model.sft_gradient([ids[:-targets]], [ids[-targets:]], recompute=True)
model.update(1e-3)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
"""


def peak_bytes(values: dict, tokens: int, targets: int) -> int:
    """Peak resident bytes of a process that trains on one sample."""
    done = subprocess.run([sys.executable, "-c", _WORK, json.dumps([values, tokens, targets])],
                          check=True, capture_output=True, text=True)
    return int(done.stdout) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 32768), ("vocab", 151936), ("width", 64), ("layers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    config = ModelConfig(
        model_type="qwen2", vocab_size=args.vocab, hidden_size=args.width,
        num_hidden_layers=args.layers, num_attention_heads=max(args.width // 64, 1),
        intermediate_size=4 * args.width, max_position_embeddings=args.tokens,
        tie_word_embeddings=True)
    plan = plan_memory(config, length=args.tokens, sequences=1, recompute=True)
    one, every = (peak_bytes(config.to_dict(), args.tokens, n) for n in (1, args.tokens - 1))
    print(plan)
    print(f"peak with one token in the loss  {one / 2**30:9.3f} GiB")
    print(f"peak with all of them            {every / 2**30:9.3f} GiB")
    print(f"the head adds                    {(every - one) / 2**30:9.3f} GiB "
          f"(plan {plan.bytes_of('training: head') / 2**30:.3f})")


if __name__ == "__main__":
    main()
