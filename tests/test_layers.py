"""Layers look downward only: what every file of the package and of the core imports or includes."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "r1grpo"

PLAIN = {"added_tokens", "algebra", "brief", "charts", "chat_targets", "chat_template",
         "checkpoint", "config", "contamination", "curation", "data", "families", "flops", "guards", "hf_tokenizer",
         "hub", "json_rows", "judge", "layouts", "lora", "model_config", "monitor", "number_formats",
         "packing", "preferences", "readable", "refusals", "report_completions", "report_parts", "report_style", "rewards",
         "rope", "rows", "rundir", "safe_files", "safetensors_file", "tasks", "template_sandbox",
         "text_stream", "tokenizer", "toml", "trackers", "verifiers", "vocabulary"}
FACE = {"_core", "advantage", "batch", "cuda", "device", "foreign", "load_folder", "losses", "model",
        "model_files", "model_source", "model_state", "offload", "parameters", "plan", "rollout", "sampling",
        "save_folder", "weights"}
TRAINERS = {"coldstart", "console", "distill", "evaluate", "folder", "grpo", "grpo_metrics", "judging", "rejection",
            "reward_model", "samples", "scoring", "sft", "trainer"}
STORY = {"cli", "commands", "doctor", "measure", "pipeline", "recipe", "report", "run", "sources",
         "stages", "work"}
MAY_SEE = {"plain": PLAIN, "face": PLAIN - {"rewards", "tasks", "verifiers", "tokenizer"} | FACE,
           "trainers": PLAIN | FACE - {"_core"} | TRAINERS,
           "story": PLAIN | FACE - {"_core"} | TRAINERS | STORY}
LIBRARIES = {"huggingface_hub", "jinja2", "lingua", "math_verify", "numpy", "pyarrow", "reasoning_gym",
             "tokenizers", "tqdm", "IPython"}


def layer_of(module: str) -> str:
    for layer, members in (("plain", PLAIN), ("face", FACE), ("trainers", TRAINERS),
                           ("story", STORY)):
        if module in members:
            return layer
    raise AssertionError(f"r1grpo.{module} stands in no layer of this table")


def imports(file: Path) -> set[str]:
    """Absolute names of what a file imports, wherever in the file; typing-only imports count."""
    package = ["r1grpo", *file.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{name}.{alias.name}" for alias in node.names} if name == "r1grpo" \
                else {name}
    return found


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_sees_only_its_layer_and_those_below(file):
    module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = MAY_SEE[layer_of(module)] | {"__version__", module}
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "r1grpo":
            assert rest and rest[0] in allowed, f"{module} imports {name}"
        else:
            assert top in sys.stdlib_module_names | LIBRARIES, f"{module} imports {name}"


def test_only_the_engines_face_sees_the_core():
    for file in FILES:
        module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if "r1grpo._core" in imports(file):
            assert module in FACE, f"{module} imports _core"


@pytest.mark.parametrize("name", ["pickle", "marshal", "shelve", "torch"])
def test_nothing_imports_what_is_forbidden(name):
    assert [file for file in FILES if name in {one.split(".")[0] for one in imports(file)}] == []


def test_nothing_evaluates_text():
    """But the process inside the sandbox, which is there to run programs."""
    warden = PACKAGE / "verifiers" / "warden.py"
    assert warden in FILES and not any("warden" in name for file in FILES for name in imports(file))
    for file in set(FILES) - {warden}:
        calls = {node.func.id for node in ast.walk(ast.parse(file.read_text("utf-8")))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not calls & {"eval", "exec", "compile", "__import__"}, file


def test_the_rubric_is_seen_by_data_and_measurement_alone():
    seers = {file.relative_to(PACKAGE).parts[0] for file in FILES
             if any("rubric" in name for name in imports(file))}
    assert seers == {"sources.py", "measure.py"}


# ---- the core -----------------------------------------------------------------------------------

CSRC = ROOT / "csrc"
# folder -> folders whose headers it may include; csrc itself holds r1.h and ops.h
C_LAYERS = {"base": {"", "base"}, "cpu": {"", "base", "cpu"}, "model": {"", "base", "model"},
            "bind": {"", "base", "model", "bind", "cpu"}, "": {"", "base"}}
C_FILES = sorted((*CSRC.rglob("*.c"), *CSRC.rglob("*.h")))


CUDA_FILES = sorted((*ROOT.glob("kernels/*.cu"), *ROOT.glob("kernels/*.cuh")))
CUDA_SEES = {Path("csrc/ops.h"), Path("csrc/options.h")}
CUDA_HEADERS = {"cuda_runtime.h", "mma_emulated.h", "type_traits", "assert.h", "dlfcn.h", "math.h",
                "stdarg.h", "stddef.h", "stdint.h", "stdio.h", "string.h", "unistd.h"}


def includes(file: Path) -> list[tuple[str, str]]:
    """(kind, name) of every #include: kind '<' or '\"'."""
    return re.findall(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', file.read_text(), re.M)


@pytest.mark.parametrize("file", C_FILES, ids=lambda file: str(file.relative_to(CSRC)))
def test_a_c_file_includes_only_its_layer_and_those_below(file):
    folder = file.relative_to(CSRC).parts[0] if file.parent != CSRC else ""
    for kind, name in includes(file):
        if kind == '"':
            found = [place for place in (file.parent / name, CSRC / name) if place.exists()]
            assert found, f"{file.name} includes {name}, which is nowhere"
            place = found[0].resolve().relative_to(CSRC)
            below = place.parts[0] if len(place.parts) > 1 else ""
            assert below in C_LAYERS[folder], f"{file.name} includes {name}"
        else:
            assert "Python" not in name and "numpy" not in name or folder == "bind", \
                f"{file.name} includes {name}"


@pytest.mark.parametrize("file", CUDA_FILES, ids=lambda file: file.name)
def test_a_cuda_file_sees_the_table_the_base_and_cuda_alone(file):
    for kind, name in includes(file):
        if kind == '"':
            place = (file.parent / name).resolve().relative_to(ROOT)
            assert place.exists() and (place.parent in (Path("kernels"), Path("csrc/base"))
                                       or place in CUDA_SEES), f"{file.name} includes {name}"
        else:
            assert name in CUDA_HEADERS, f"{file.name} includes {name}"


def test_base_knows_no_op_and_one_file_sees_numpy():
    for file in (CSRC / "base").iterdir():
        assert all(name.split("/")[-1] != "ops.h" for _, name in includes(file)), file.name
    numpy = {file.name for file in C_FILES if any("numpy/" in name for _, name in includes(file))}
    assert numpy <= {"args.c"}


@pytest.mark.parametrize("word", ["printf", "fprintf", "exit", "abort", "getenv", "fopen"])
def test_the_core_prints_nothing_reads_nothing_and_never_exits(word):
    for file in (*C_FILES, *CUDA_FILES):
        if file.parent.name in ("base", "cpu", "model", "kernels"):
            code = re.sub(r"/\*.*?\*/|//[^\n]*|\"(\\.|[^\"])*\"", "", file.read_text(), flags=re.S)
            assert not re.search(rf"\b{word}\s*\(", code), f"{file.name} calls {word}"
