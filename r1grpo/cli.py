"""cli.py - the command line.

    r1grpo pipeline [--out DIR] [--recipe FILE.toml] [--seed N] [--resume] [--quick]
    r1grpo sft | grpo | curate | reject | distill --model FOLDER --data FILE --out DIR [...]
    r1grpo coldstart --model FOLDER --data FILE --out DIR [...] | --out DIR --edited FILE
    r1grpo judge --model NAME --data FILE --out DIR --set url=URL [...]
    r1grpo eval DIR/STAGE [--check] | --model FOLDER --data FILE [...]
    r1grpo generate DIR/STAGE "problem" | --model FOLDER "prompt" | --model FOLDER --chat
    r1grpo report DIR
    r1grpo audit DIR
    r1grpo doctor

Exit codes: 0 done, 1 a check found a difference, 2 a request that cannot be met (one line on
stderr), 130 stopped by Ctrl-C or SIGTERM. Everything it does is a call of the package.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from . import __version__
from .checkpoint import load_checkpoint
from .commands.options import COLDSTART, CURATE, DISTILL, EVAL, GRPO, JUDGE, REJECT, SFT, Command
from .config import ConfigError
from .doctor import examine
from .monitor import format_seconds
from .refusals import refusal
from .tokenizer import WordTokenizer, format_prompt

_FIGURES = ("pass@1", "pass@1_ci", "cons@k", "wellformed_accuracy", "mean_tokens", "truncated",
            "format", "language_consistency", "reflection_per_response")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. --top_p is --top-p: other projects write it so."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if reason := refusal(given):
        print(f"r1grpo: {reason}", file=sys.stderr)
        return 2
    options, rest = _parser().parse_known_args([_dashed(one) for one in given])
    if rest:
        print(f"r1grpo: `r1grpo {given[0]}` takes no {rest[0]!r}; its --help lists what it takes",
              file=sys.stderr)
        return 2
    warnings.showwarning = _show_warning
    try:
        return options.run(options)
    except KeyboardInterrupt as stop:
        print(f"r1grpo: {stop or 'interrupted'}", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, FloatingPointError, MemoryError) as error:
        print(f"r1grpo: {error}", file=sys.stderr)
        return 2


def _dashed(argument: str) -> str:
    flag, sign, value = argument.partition("=")
    return (flag.replace("_", "-") if flag.startswith("--") else flag) + sign + value


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"r1grpo: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="r1grpo", description="The DeepSeek-R1 recipe at small "
                                     "size, in one engine.")
    parser.add_argument("--version", action="version", version=f"r1grpo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        return found

    pipeline = command("pipeline", _pipeline, "R1-Zero, the stages of R1 and distillation")
    pipeline.add_argument("--out", type=Path, metavar="DIR",
                          help="directory of the run (runs/r1-seed0, by the seed; runs/quick)")
    pipeline.add_argument("--recipe", type=Path, metavar="FILE.toml",
                          help="changes to the default recipe")
    pipeline.add_argument("--seed", type=int, metavar="N", help="seed of everything random (0)")
    pipeline.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    pipeline.add_argument("--quick", action="store_true",
                          help="a very small run that shows that everything works; not a result")
    stage_options(command("sft", _stage("sft"), "fine-tune a model folder on completions"), SFT)
    stage_options(command("grpo", _stage("grpo"), "reinforce a model folder on problems"), GRPO)
    stage_options(command("curate", _stage("curate"), "keep the problems that a model solves now and then"),
                  CURATE)
    stage_options(command("reject", _stage("reject"), "sample a model and keep what is right"), REJECT)
    coldstart = command("coldstart", _stage("coldstart"), "right and readable samples, to be edited by hand and "
                                                          "taken back")
    stage_options(coldstart, COLDSTART)
    coldstart.add_argument("--edited", type=Path, metavar="FILE.jsonl",
                           help="what DIR/candidates.jsonl has become: DIR/rows.jsonl is made of it")
    distill = command("distill", _stage("distill"), "a student learns a teacher's right answers")
    stage_options(distill, DISTILL)
    distill.add_argument("--teacher", metavar="FOLDER",
                         help="who is asked the problems first; without: data are its rows")
    stage_options(command("judge", _stage("judge"), "pairs or labels of responses, by a model behind an "
                                                    "OpenAI-compatible endpoint"), JUDGE)
    check = command("eval", _eval, "measure a checkpoint of a run on its held-out problems, or a "
                                   "model folder on a data file")
    check.add_argument("checkpoint", type=Path, metavar="DIR/STAGE", nargs="?")
    stage_options(check, EVAL)
    check.add_argument("--check", action="store_true",
                       help="compare every stored sample and every figure, bit for bit")
    generate = command("generate", _generate, "show a checkpoint think and answer")
    generate.add_argument("words", nargs="*", metavar="DIR/STAGE problem",
                          help='for example runs/r1-seed0/r1 "use 3 7 12 to make 33"; with '
                               '--model the prompt alone')
    model_options(generate)
    generate.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    generate.add_argument("--device", default="cpu", help="cpu, cuda or cuda/fast")
    generate.add_argument("--chat", action="store_true",
                          help="a conversation; /reset begins anew, Ctrl-D ends it")
    generate.add_argument("--raw", action="store_true", help="the prompt without a chat template")
    generate.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (0.7)")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="(1.0)")
    generate.add_argument("--max-tokens", type=int, default=None, metavar="N",
                          help="(256; of a model folder 4096)")
    generate.add_argument("--speculative", action="store_true",
                          help="the model's MTP module guesses a token ahead: the same text, sooner")
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    report = command("report", _report, "write report.html of a run again")
    report.add_argument("folder", type=Path, metavar="DIR")
    audit = command("audit", _stage("audit"), "the judged samples of a run, the most suspicious first")
    audit_options(audit)
    command("doctor", _doctor, "what is installed and what the engine will use")
    return parser


def audit_options(audit: argparse.ArgumentParser) -> None:
    """Which samples, and how they are shown."""
    audit.add_argument("folder", type=Path, metavar="DIR")
    audit.add_argument("--suspicious", action="store_true", help="only those that something speaks against")
    audit.add_argument("--canary", action="store_true", help="only those of prompts that cannot be solved")
    audit.add_argument("--signs", action="store_true", help="only code with signs of cheating its grader")
    audit.add_argument("--step", type=int, metavar="N", help="of the rollout that update N was the first of")
    audit.add_argument("--key", metavar="KEY", help="of the problem with this problem_key")
    audit.add_argument("--reward", metavar="NAME", help="that this reward applies to")
    audit.add_argument("--above", type=float, metavar="X", help="whose reward (the first, or NAME) is above X")
    audit.add_argument("--below", type=float, metavar="X", help="whose reward (the first, or NAME) is below X")
    audit.add_argument("--reason", metavar="WORD", help="with this reason of a verdict: wrong, timeout, ...")
    audit.add_argument("--contains", metavar="TEXT", help="with this text in prompt or completion")
    audit.add_argument("--limit", type=int, default=20, metavar="N", help="(20)")
    audit.add_argument("--full", action="store_true", help="whole prompts and completions")
    audit.add_argument("--json", action="store_true", help="whole rows, as JSON lines")


def _rank(text: str) -> dict[str, int]:
    """--lora R, as the options have it."""
    return {"r": int(text)}


def model_options(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    parser.add_argument("--model", metavar="FOLDER",
                        help="a Hugging Face folder, a folder of adapters, or an id of the hub")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of an id of the hub")


def stage_options(parser: argparse.ArgumentParser, stage: Command) -> None:
    """The flags of a command on a data file, mostly with a model folder, and the keys of --set."""
    keys = stage.keys()
    parser.epilog = f"KEY, as in FILE.toml (docs/real_models.md): {', '.join(keys)}"
    asks_folder = "device" in keys
    if asks_folder:
        model_options(parser)
    else:
        parser.add_argument("--model", metavar="NAME", help="as the endpoint calls it")
    parser.add_argument("--data", metavar="FILE", help="rows: .jsonl, .json, .parquet, a folder")
    parser.add_argument("--layout", metavar="NAME", help="what the columns mean (found by itself)")
    if "reward" in keys:
        parser.add_argument("--reward", metavar="NAME",
                            help="accuracy,cosine,language,... or FILE.py:function (accuracy)")
    if stage.presets:
        parser.add_argument("--preset", metavar="NAME",
                            help=f"published options: {', '.join(stage.presets)}")
    if "lora" in keys:
        parser.add_argument("--lora", metavar="R", type=_rank,
                            help="train low-rank adapters of rank R alone; more: --set lora.KEY=VALUE")
        parser.add_argument("--merge", action="store_true", default=None,
                            help="DIR/final is a whole model, its adapters merged")
    if asks_folder:
        parser.add_argument("--dtype", help="float32 or bfloat16")
        parser.add_argument("--device", help="cpu, cuda or cuda/fast")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="options")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
                        help="options, such as learning_rate=2e-6; over those of the file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory of the run")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    if asks_folder:
        parser.add_argument("--plan", action="store_true", help="show what memory it takes, and stop")
    else:
        parser.set_defaults(plan=False)


def _stage(name: str) -> Callable[[argparse.Namespace], int]:
    """A command of commands/, imported when it is asked for."""
    return lambda options: import_module(f".commands.{name}", __package__).run(options)


# ---- pipeline -----------------------------------------------------------------------------------


def _pipeline(options: argparse.Namespace) -> int:
    from .pipeline import run_pipeline
    from .recipe import Recipe, quick_recipe, read_recipe
    from .work import CONFIG

    if options.quick and options.recipe:
        raise ConfigError("--quick and --recipe are two recipes; give one")
    changes = {} if options.seed is None else {"seed": options.seed}
    if options.quick:
        recipe = quick_recipe(**changes)
    elif options.recipe:
        recipe = read_recipe(options.recipe, **changes)
    else:
        recipe = Recipe(**changes)
        stored = (options.out or _default_out(recipe)) / CONFIG
        if options.resume and stored.is_file():
            recipe = read_recipe(stored, **changes)
    out = options.out or (Path("runs/quick") if options.quick else _default_out(recipe))
    summary = run_pipeline(out, recipe, options.resume)
    print(_summary_table(summary))
    print(f"\n{out / 'report.html'}")
    return 0


def _default_out(recipe: Any) -> Path:
    return Path(f"runs/r1-seed{recipe.seed}")


def _summary_table(summary: dict[str, Any]) -> str:
    """The stages of a summary, a line each."""
    lines = ["NOT A RESULT: a quick run, its figures mean nothing.\n"] if summary["quick"] else []
    lines.append(f"{'stage':16}{'pass@1':>8}{'95 % interval':>18}{'cons@k':>8}{'format':>8}"
                 f"{'language':>10}{'tokens':>8}{'ood':>8}")
    for name, one in summary["stages"].items():
        low, high = one["pass@1_ci"]
        lines.append(f"{name:16}{one['pass@1']:8.3f}{f'{low:.3f} to {high:.3f}':>18}"
                     f"{one['cons@k']:8.3f}{one['format']:8.3f}"
                     f"{one['language_consistency']:10.3f}{one['mean_tokens']:8.1f}"
                     f"{one['ood']['pass@1']:8.3f}")
    lines.append(f"\nseed {summary['seed']}, {format_seconds(summary['wall_seconds'])}, "
                 f"{summary['parameters']['total']:,} parameters; max_logprob_gap "
                 f"{summary['max_logprob_gap']!r} over {summary['gap_tokens']:,} tokens")
    return "\n".join(lines)


# ---- eval ---------------------------------------------------------------------------------------


def _eval(options: argparse.Namespace) -> int:
    from .measure import check_stage, draw_stage, stage_figures
    from .model import Model
    from .recipe import read_recipe
    from .work import CONFIG

    path: Path = options.checkpoint
    if path is None:
        return _stage("evaluate")(options)
    if options.model or options.data:
        raise ValueError(f"eval takes a stage of a pipeline's run or a model folder, which is --model "
                         f"FOLDER; {path} stands for a stage")
    template, tokenizer = _template(path), WordTokenizer.load(path)
    if not (path.parent / CONFIG).is_file():
        raise FileNotFoundError(f"{path.parent} has no {CONFIG}: eval needs the directory of a run")
    recipe = read_recipe(path.parent / CONFIG)
    model = Model.from_pretrained(path, frozen=True)
    if model.config.score_head:
        raise ValueError(f"{path} is a reward model; eval measures policies")
    if not options.check:
        found = stage_figures(draw_stage(model, recipe, template, tokenizer, lambda count: None))
        for name in _FIGURES:
            print(f"{name:26}{_figure(found['figures'][name]):>20}"
                  f"{_figure(found['figures']['ood'][name]):>20}")
        for name, value in found.get("general", {}).items():
            print(f"{name:26}{_figure(value):>20}")
        return 0
    wrong = check_stage(path.parent, path.resolve().name, model, recipe, template, tokenizer)
    print("\n".join(wrong) if wrong else "identical")
    return 1 if wrong else 0


def _figure(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"{value[0]:.3f} to {value[1]:.3f}"
    return f"{value:.4g}"


def _template(path: Path) -> str:
    """The template that a stage's checkpoint was made for; verifies its files on the way."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no checkpoint: there is no such folder")
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")) and \
            not (path / "checkpoint.json").exists():
        raise FileNotFoundError(f"{path} is no checkpoint of `r1grpo pipeline`; of a model folder it is "
                                f"--model {path}")
    return load_checkpoint(path).meta.get("template", "r1")


# ---- generate, report, doctor -------------------------------------------------------------------


def _generate(options: argparse.Namespace) -> int:
    from .model import Model

    if not math.isfinite(options.temperature):
        raise ValueError(f"--temperature is {options.temperature}")
    if options.max_tokens is not None and options.max_tokens < 1:
        raise ValueError(f"--max-tokens is {options.max_tokens}, must be at least 1")
    if options.model is not None:
        return _stage("generate")(options)
    if len(options.words) != 2 or options.chat or options.raw:
        raise ValueError("generate needs DIR/STAGE and a problem, or --model FOLDER")
    checkpoint, problem = options.words
    template, tokenizer = _template(Path(checkpoint)), WordTokenizer.load(checkpoint)
    if not problem.split():
        raise ValueError("the problem is empty")
    prompt = tokenizer.encode(format_prompt(problem, template))
    model = Model.from_pretrained(checkpoint, frozen=True, device=options.device)
    session = model.session([prompt], 1, options.max_tokens or 256, top_p=options.top_p,
                            temperature=options.temperature, seed=options.seed,
                            speculative=options.speculative,
                            stop_token_ids=tokenizer.stop_token_ids(template))
    shown = 0
    while not session.done:
        session.run(4 if options.speculative else 1)
        words = tokenizer.decode(session.ids(0)[shown:])
        shown = len(session.ids(0))
        print(words, end=" " if words else "", flush=True)
    print()
    if session.rollout().finish_reasons[0] == "length":
        print(f"(cut off after {shown} tokens)", file=sys.stderr)
    return 0


def _report(options: argparse.Namespace) -> int:
    from .report import write_report

    print(write_report(options.folder))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    for name, finding in examine():
        print(f"{name:26}{finding}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
