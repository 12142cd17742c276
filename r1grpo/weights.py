"""The core's parameters <-> Hugging Face's state dict, and the random start.

A core parameter is (name, E, O, I, trained); '*' in a name stands for the expert's number: its array
(E, O, I) is E tensors of the file. Vectors have O = 0. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from .model_config import ModelConfig

__all__ = ["from_hf", "init_weights", "to_hf"]


def to_hf(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Core arrays -> tensors by Hugging Face name."""
    state = {}
    for name, array in arrays:
        if "*" in name:
            state |= {name.replace("*", str(e)): matrix for e, matrix in enumerate(array)}
        else:
            state[name] = array[0] if array.ndim == 3 else array
    return state


def from_hf(state: dict[str, np.ndarray], params: list, config: ModelConfig) -> list[np.ndarray]:
    """Tensors by name -> core arrays, in the order of params. All faults in one ValueError."""
    faults, used, arrays = [], set(), []
    for name, E, O, I, _ in params:  # noqa: E741 - the core's letters
        shape = (O, I) if O else (I,)
        names = [name.replace("*", str(e)) for e in range(E)] if "*" in name else [name]
        used.update(names)
        missing = [n for n in names if n not in state]
        faults += [f"missing {n} {shape}" for n in missing]
        have = {n: np.asarray(state[n]) for n in names if n in state}
        wrong = [n for n, a in have.items() if a.shape != shape or a.dtype.kind != "f"]
        faults += [f"{n} is {have[n].dtype} {have[n].shape}, expected float32 {shape}" for n in wrong]
        if not missing and not wrong:
            arrays.append(np.stack([have[n].astype(np.float32) for n in names]))
    faults += [f"surplus {n}" for n in sorted(set(state) - used) if not _shared(n, config)]
    if faults:
        raise ValueError("state dict does not fit the model: " + "; ".join(faults))
    return arrays


def _shared(name: str, config: ModelConfig) -> bool:
    """Copies of shared tensors that published files carry: a tied head, the MTP module's."""
    mtp = f"model.layers.{config.num_hidden_layers}."
    return (name == "lm_head.weight" and config.tie_word_embeddings) or name in (
        f"{mtp}embed_tokens.weight", f"{mtp}shared_head.head.weight")


def init_weights(params: list, config: ModelConfig, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index, array) of every parameter: matrices normal with initializer_range, those that write to
    the residual stream divided by sqrt(2 L) (Radford et al. 2019, section 2.3), norms 1, biases 0.
    A parameter's numbers depend on its place in the list and the seed."""
    for i, (name, E, O, I, _) in enumerate(params):  # noqa: E741
        if O == 0:
            fill = 0.0 if name.endswith(("bias", "e_score_correction_bias")) else 1.0
            yield i, np.full(I, fill, np.float32)
            continue
        draw = np.random.Generator(np.random.Philox(key=[seed, i]))
        array = draw.standard_normal((E, O, I), np.float32) * np.float32(config.initializer_range)
        if "o_proj" in name or "down_proj" in name:
            array /= np.float32(np.sqrt(2 * config.num_hidden_layers))
        yield i, array
