r"""Verdicts on answers of MATH's train problems: are they right, how fast are they?

    python -m benchmarks.bench_verdicts DATA [--pairs 5000] [--peer] [--show 10] [--json FILE]

DATA is a file of problems with answers (any that load_rows reads). Pairs (answer, reference) are made from
its answers, the same ones in every run:

    spellings   an answer written in another way: \dfrac, spaces, \left \right, full stop, unit, per cent,
                decimals, thousands, a slash, a name before it, a list in another order: right
    others      the answer of another problem: wrong, unless it is the same value
    perturbed   a digit, a sign, a bracket, an item, an operation changed: wrong

Shown are false positives, false negatives, and verdicts a second on one core (processor time, nothing
cached). --peer: math-verify's verdicts on the same pairs beside ours, in a VerifierPool. Another
problem's answer that we call right is a false positive unless math-verify calls it right too, or both are
spelled alike. --show prints pairs of each disagreement; nothing of the data is in the JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from r1grpo.device import get_device
from r1grpo.rows import load_rows
from r1grpo.verifiers import VerifierPool, answers, exact_number, spelling, verify_answer
from r1grpo.verifiers import expressions, values

from .machine import describe


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", re.ASCII)
_EXPRESSION = re.compile(r"[\w\s+*/^{}().-]*(?:\\(?:[dt]?frac|sqrt|pi)[\w\s+*/^{}().-]*)*", re.ASCII)
_LIST = re.compile(r"[^()\[\]{}=:]+(?:,[^()\[\]{}=:]+)+")


class Pair(NamedTuple):
    kind: str
    way: str
    answer: str
    gold: str


def spellings(gold: str) -> Iterator[tuple[str, str]]:
    """(way, the same answer in that way)."""
    dress = rf"\[ {gold} \]", f"${gold}$", gold + ".", gold
    yield "dress", dress[len(gold) % 4]
    if "=" not in gold and "," not in gold and "text" not in gold:
        yield "name", f"x = {gold}"
    if "frac" in gold:
        yield "frac", re.sub(r"\\[dt]?frac", r"\\dfrac", gold)
        yield "frac", re.sub(r"\\[dt]?frac", r"\\frac ", gold)
    if re.search(r"[+(]", gold) and "text" not in gold and "box" not in gold:
        yield "spaces", re.sub(r"([+()])", r" \1 ", gold)
    if gold.count("(") == gold.count(")") > 0 and "\\left" not in gold and "text" not in gold:
        yield "left right", gold.replace("(", "\\left(").replace(")", "\\right)")
    if match := _FRACTION.fullmatch(gold):
        sign, top, bottom = match.groups()
        yield "slash", f"{sign}{top}/{bottom}"
        value = Fraction(int(sign + top), int(bottom))
        if (value * 10 ** 6).denominator == 1:
            yield "decimal", f"{float(value):.10f}".rstrip("0")
    if _NUMBER.fullmatch(gold):
        yield "unit", rf"{gold}\text{{ units}}"
        yield "unit", f"{gold} apples"
        yield "sign", gold if gold.startswith("-") else f"+{gold}"
        if "." not in gold:
            yield "decimal", gold + ".00"
            if len(gold.strip("-")) > 3:
                for comma in (",", "{,}", ",\\!"):
                    yield "thousands", f"{int(gold):,}".replace(",", comma)
    if match := re.fullmatch(r"\\frac\{(-?\d*)(\\sqrt\{\d+\}|\\pi)\}\{(\d+)\}", gold):
        whole = match[1] if match[1].strip("-") else match[1] + "1"
        yield "factor", rf"\frac{{{whole}}}{{{match[3]}}}{match[2]}"
        yield "factor", rf"{match[1]}{match[2]}/{match[3]}"
    if match := re.fullmatch(r"(\d+) ?\\sqrt\{(\d+)\}", gold):
        yield "under the root", rf"\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}"
    left, plus, right = gold.partition("+")
    if plus and re.fullmatch(r"[\w\\{}^ ]+", left + right) and left.count("{") == left.count("}") \
            and "text" not in gold:
        yield "sum", f"{right} + {left}"
    if " \\cup " in gold:
        yield "union", " \\cup ".join(reversed(gold.split(" \\cup ")))
    if gold.startswith("\\$"):
        yield "currency", gold[2:].strip() + " dollars"
        yield "currency", gold[2:].strip()
    if "pmatrix" in gold:
        yield "matrix", gold.replace("pmatrix", "bmatrix").replace("&", " & ")
    if gold.endswith("\\%"):
        for sign in ("%", " percent", r"\text{ percent}", ""):
            yield "per cent", gold[:-2] + sign
    if gold.endswith(("^\\circ", "^{\\circ}")) and "," not in gold:
        body = gold.removesuffix("^\\circ").removesuffix("^{\\circ}")
        for sign in ("\u00b0", " degrees", "^{\\circ}", ""):
            yield "degrees", body + sign
    if _LIST.fullmatch(gold) and exact_number(gold) is None and "text" not in gold:
        parts = [part.strip() for part in gold.split(",")]
        yield "order", ", ".join(reversed(parts))
        yield "set", r"\{" + ", ".join(parts) + r"\}" if len(set(parts)) == len(parts) else gold


def perturbed(gold: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(way, an answer of another value)."""
    numbers = list(re.finditer(r"\d+", gold))
    if numbers and exact_number(gold) != 0:
        place = numbers[int(rng.random() * len(numbers))].end() - 1
        yield "digit", gold[:place] + str((int(gold[place]) + 1) % 10) + gold[place + 1:]
    yield "another item", f"{gold}, 7919"
    yield "another answer", f"{gold} or 7919"
    yield "another answer", rf"{gold} \text{{ or }} 7919"
    if _EXPRESSION.fullmatch(gold) and exact_number(gold) != 0 and not gold.isalpha():
        yield "sign", f"-({gold})"
        yield "plus", f"{gold} + 1"
        yield "twice", f"2({gold})"
        yield "square", f"({gold})^2 + 3"
    if (match := _FRACTION.fullmatch(gold)) and match[2] != match[3]:
        yield "upside down", f"{match[1]}\\frac{{{match[3]}}}{{{match[2]}}}"
        yield "rounded", f"{match[1]}{int(match[2]) / int(match[3]) + 1e-7:.7f}"
    if gold.startswith("(") and gold.count("(") == 1 and "," in gold:
        yield "bracket", "[" + gold[1:]
        yield "bracket", r"\{" + gold[1:].rstrip(")]") + r"\}"
    if _LIST.fullmatch(gold) and exact_number(gold) is None:
        yield "fewer items", gold.rpartition(",")[0]
    if re.search(r"(?<![A-Za-z\\])x", gold):
        yield "letter", re.sub(r"(?<![A-Za-z\\])x", "w", gold)
    if match := re.fullmatch(r"\\text\{\(?([A-F])\)?\}", gold):
        yield "choice", r"\text{" + chr(ord(match[1]) + 1) + "}"
        yield "choice", rf"\text{{{match[1]}}}, \text{{{chr(ord(match[1]) + 1)}}}"


def pairs_of(golds: list[str], count: int) -> list[Pair]:
    """count pairs, half of them spellings, a quarter others, a quarter perturbed; every way as often."""
    rng = random.Random(0)

    def some(n: int, ways: dict[str, list[tuple[str, str]]], kind: str) -> list[Pair]:
        """n pairs, every way as often as the others."""
        names, made = sorted(ways), []
        for i in range(n):
            way = names[i % len(names)]
            answer, gold = ways[way][int(rng.random() * len(ways[way]))]
            made.append(Pair(kind, way, answer, gold))
        return made

    def by_way(make: Callable[[str], Iterator[tuple[str, str]]]) -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for gold in golds:
            for way, answer in make(gold):
                found.setdefault(way, []).append((answer, gold))
        return found

    distinct = sorted(set(golds))
    others = [(distinct[int(rng.random() * len(distinct))], gold) for gold in distinct for _ in range(4)]
    half, quarter = count // 2, count // 4
    return [*some(half, by_way(spellings), "spellings"),
            *some(quarter, {"other": [pair for pair in others if pair[0] != pair[1]]}, "others"),
            *some(count - half - quarter, by_way(lambda gold: perturbed(gold, rng)), "perturbed")]


def clear() -> None:
    """Forget everything that was read."""
    for cached in (values.read, expressions.evaluate, answers._read):
        cached.cache_clear()


def judge(pairs: list[Pair]) -> tuple[list[bool], int, float]:
    """(right or not, how many exact rules decided, processor seconds), nothing cached before."""
    clear()
    start = time.process_time()
    found = [verify_answer(pair.answer, pair.gold) for pair in pairs]
    seconds = time.process_time() - start
    return [one.correct for one in found], sum(not one.detail for one in found), seconds


def their_verdicts(pairs: list[Pair]) -> list[bool | None]:
    """math-verify's own, as it is used: both in boxes; None where it came to no end."""
    with VerifierPool(workers=1, deadline=10.0) as pool:
        tickets = [pool.submit("benchmarks.bench_verdicts:math_verify", pair.answer, pair.gold)
                   for pair in pairs]
        found = [pool.result(ticket) for ticket in tickets]
    return [one if isinstance(one, bool) else None for one in found]


def math_verify(answer: str, gold: str) -> bool:
    """math-verify's verdict with its defaults but for its own time limits (called in a worker)."""
    from math_verify import parse, verify

    bare = (re.sub(r"(?<!\\)\$|\\\[|\\\]", " ", one).strip() for one in (gold, answer))
    reference, found = (parse(f"\\boxed{{{one}}}", parsing_timeout=None) for one in bare)
    return bool(verify(reference, found, timeout_seconds=None))


def figures(pairs: list[Pair], peer: bool) -> tuple[dict, dict[str, list[int]]]:
    """The rows of the JSON, and which pairs they speak of."""
    ours, decided, first = judge(pairs)
    seconds = min(first, *(judge(pairs)[2] for _ in range(2)))
    theirs = their_verdicts(pairs) if peer else [None] * len(pairs)
    alike = [spelling(pair.answer) == spelling(pair.gold) for pair in pairs]
    of = {"false positives": [n for n, pair in enumerate(pairs) if ours[n] and (
              pair.kind == "perturbed" or pair.kind == "others" and not alike[n] and not theirs[n])],
          "false negatives": [n for n, pair in enumerate(pairs)
                              if pair.kind == "spellings" and not ours[n]],
          "theirs alone": [n for n in range(len(pairs)) if theirs[n] and not ours[n]],
          "ours alone": [n for n in range(len(pairs)) if ours[n] and theirs[n] is False]}
    rows: dict[str, dict] = {"exact": {
        "pairs": len(pairs), "false_positives": len(of["false positives"]),
        "false_negatives": len(of["false negatives"]),
        "of_spellings": sum(pair.kind == "spellings" for pair in pairs),
        "decided": decided, "verdicts_per_second": round(len(pairs) / seconds)}}
    if peer:
        rows["math_verify"] = {"no_verdict": theirs.count(None)} | {
            kind: Counter("both" if a and b else "ours alone" if a else "theirs alone" if b else "neither"
                          for pair, a, b in zip(pairs, ours, theirs) if pair.kind == kind)
            for kind in ("spellings", "others", "perturbed")}
    return rows, of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a file of problems with answers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--peer", action="store_true", help="math-verify's verdicts on the same pairs")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="pairs of each disagreement")
    args = parser.parse_args()
    pairs = pairs_of([row["answer"] for row in load_rows(args.data) if row.get("answer")], args.pairs)
    rows, of = figures(pairs, args.peer)
    found = {"benchmark": "verdicts", "machine": describe(get_device()), **rows}
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, chosen in of.items():
        for n in chosen[:args.show]:
            print(f"{name}: {pairs[n].kind}, {pairs[n].way}: {pairs[n].answer!r} for {pairs[n].gold!r}")


if __name__ == "__main__":
    main()
