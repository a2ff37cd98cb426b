"""Check every known model and write the table of docs/en/models.md and docs/zh/models.md.

python scripts/models_report.py            print the table
python scripts/models_report.py --write    write it into both documents
python scripts/models_report.py --gib 26   package up to 26 GiB of each model instead of 2
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from builder.families import family_named  # noqa: E402
from builder.quantization import parameter_count  # noqa: E402
from builder.recipe import Recipe, find_recipe, known_recipes  # noqa: E402
from scripts.generated import between, table  # noqa: E402
from tests.builder.published import tokenizer_of, write_sources, write_weights  # noqa: E402
from tests.daemon.backends.ms.test_architectures import (  # noqa: E402
    logits,
    running,
    vocab_of,
    write_folder,
    write_model,
)
from tests.reference.architectures import CASES, prompt, random_weights  # noqa: E402
from tests.reference.make_goldens import GOLDENS, key_of  # noqa: E402

PROMPTS = "tests/builder/families/test_prompts.py"
STOP_TEST = "test_control_and_stop_tokens_have_their_published_ids"
GOLDEN_TESTS = {"telechat": ("test_telechat2_s_golden_ids", 8), "chatglm": ("test_chatglm2_s_golden_ids", 2)}
"""Family -> the test of its golden ids, and how many there are."""
RANK = 4
MEASURE = """
import resource, subprocess, sys, time
begin = time.monotonic()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""
"""Run by a small process: a child counts as memory of its own what its parent had when it began."""


@dataclass(frozen=True)
class Model:
    """A recipe and the small models that stand for it."""

    name: str
    cases: tuple[str, ...]
    gib: float
    scratch: Path = field(compare=False)

    @property
    def recipe(self) -> Recipe:
        return find_recipe(self.name).recipe


CASES_OF: Mapping[str, tuple[str, ...]] = {
    "telechat2_7b": ("telechat2", "telechat2, up to 16K"),
    "telechat2_35b": ("telechat2",),
    "telechat2_115b": ("telechat2, shared heads",),
    "telechat2_39b_a12b": ("telechat2, experts",),
    "chatglm2_6b": ("chatglm2",),
    "llama2_13b": ("llama2",),
    "baichuan2_13b_chat": ("baichuan2", "baichuan2, six heads"),
    "internlm2_5_7b_chat": ("internlm2.5", "internlm2.5, past its length", "internlm2.5, past 32768"),
    "fm9g_4b": ("fm9g",),
    "qwen1_5_7b": ("qwen1.5",),
}


def parameters(model: Model) -> str:
    count = parameter_count(family_named(model.recipe.family), model.recipe.architecture)
    return f"{count / 1e9:.2f} B"


def logits_error(model: Model) -> str:
    """The largest, relative to the largest logit, over all prompts of the model's cases."""
    worst = 0.0
    with np.load(GOLDENS) as goldens:
        for name in model.cases:
            case = CASES[name]
            folder = model.scratch / f"{model.name}-{name}"
            folder.mkdir()
            with running(write_model(folder, case), case) as runner:
                for length in case.lengths:
                    expected = goldens[key_of(name, length)]
                    ids = prompt(vocab_of(case), length)
                    got = logits(runner, ids, list(range(512, length, 512)), len(expected))
                    worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
    return f"{worst:.1e}"


@cache
def prompt_tests() -> Mapping[str, str]:
    """Test -> ``passed``, ``failed`` or ``skipped``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", PROMPTS, f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
        found = {}
        for entry in ET.parse(report).iter("testcase"):  # noqa: S314  # pytest wrote it just now
            kinds = {child.tag for child in entry}
            state = "skipped" if "skipped" in kinds else "failed" if kinds else "passed"
            found[entry.attrib["name"]] = state
    return found


def _counted(states: list[str]) -> str:
    return f"{states.count('passed')}/{len(states)}" if states else "–"


def templates(model: Model) -> str:
    return _counted(
        [
            state
            for name, state in prompt_tests().items()
            if name.endswith(f"[{model.name}]") and not name.startswith(STOP_TEST)
        ]
    )


def stop_tokens(model: Model) -> str:
    return _counted(
        [state for name, state in prompt_tests().items() if name.startswith(f"{STOP_TEST}[{model.name}-")]
    )


def goldens(model: Model) -> str:
    if model.recipe.family not in GOLDEN_TESTS:
        return "–"
    test, count = GOLDEN_TESTS[model.recipe.family]
    return {"passed": f"{count}/{count}", "failed": "failed", "skipped": f"0/{count}"}[prompt_tests()[test]]


def round_trips(model: Model) -> str:
    """HuggingFace -> mindformers -> HuggingFace, of every generation that has the family, bit for bit."""
    passed = offered = 0
    source = write_folder(model.scratch / f"{model.name}-trip", CASES[model.cases[0]])
    for form in ("mindformers-r1", "mindformers"):
        there, back = (model.scratch / f"{model.name}-{form}-{way}" for way in ("there", "back"))
        recipe = ["--model", str(source), "--quiet"]
        try:
            _builder("convert", str(source), str(there), "--to", form, *recipe)
            _builder("convert", str(there), str(back), "--to", "hf", *recipe)
        except subprocess.CalledProcessError as error:
            if "choose another --to" not in error.stderr:
                logging.warning("%s, %s: %s", model.name, form, error.stderr.strip())
                offered += 1
            continue
        offered += 1
        first, second = _tensors(source), _tensors(back)
        same = first.keys() == second.keys()
        passed += same and all(first[name].tobytes() == second[name].tobytes() for name in first)
    return f"{passed}/{offered}"


def _tensors(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def adapters(model: Model) -> str:
    """The largest error of weights with a merged adapter on every linear layer but the head."""
    case = CASES[model.cases[0]]
    source = write_folder(model.scratch / f"{model.name}-base", case)
    family = family_named(model.recipe.family)
    weights = random_weights(case.config, case.without)
    rng = np.random.default_rng(0)
    merged, stored = dict(weights), {}
    for module, width in family.linear_modules(case.config):
        if module == family.head:
            continue
        matrix = weights[f"{module}.weight"]
        a = rng.standard_normal((RANK, width), dtype=np.float32) * np.float32(0.1)
        b = rng.standard_normal((len(matrix), RANK), dtype=np.float32)
        stored |= {
            f"base_model.model.{module}.lora_{part}.weight": value for part, value in (("A", a), ("B", b))
        }
        merged[f"{module}.weight"] = matrix + np.float32(2.0) * (b @ a)
    adapter = model.scratch / f"{model.name}-adapter"
    adapter.mkdir()
    save_file(stored, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    out = model.scratch / f"{model.name}-merged"
    try:
        _builder("package", "--model", str(source), "--out", str(out), "--adapter", str(adapter), "--quiet")
    except subprocess.CalledProcessError as error:
        logging.warning("%s, adapter: %s", model.name, error.stderr.strip().splitlines()[-1:])
        return "failed"
    found = _tensors(next(out.glob("*/1")))
    return f"{max(float(np.abs(found[name] - merged[name]).max()) for name in merged):.1e}"


def packaging(model: Model) -> str:
    """Time and peak memory of packaging; of as many layers as fit, with the time for all of them."""
    recipe, family = model.recipe, family_named(model.recipe.family)
    whole = parameter_count(family, recipe.architecture) * 2
    config = dict(recipe.architecture)
    while parameter_count(family, config) * 2 > model.gib * 2**30 and config[family.layers] > 1:
        config[family.layers] = max(1, config[family.layers] * 9 // 10)
    pieces = 1000 if recipe.family in ("telechat", "llama", "baichuan") else None
    sources = write_sources(
        model.scratch / f"{model.name}-full", model.name, tokenizer_of(recipe.family, pieces)
    )
    stated = json.loads((sources / "config.json").read_text())
    (sources / "config.json").write_text(json.dumps({**stated, **config}))
    size = write_weights(sources / "model.safetensors", recipe.family, config)
    out = model.scratch / f"{model.name}-packaged"
    command = ["package", "--model", model.name, "--weights", str(sources), "--out", str(out), "--quiet"]
    measured = [sys.executable, "-c", MEASURE, sys.executable, "-m", "builder.cli", *command]
    done = subprocess.run(measured, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    for path in (*out.rglob("*.safetensors"), *sources.glob("*.safetensors")):
        path.unlink()
    if done.returncode:
        return "failed"
    seconds, memory = map(float, done.stdout.split()[-2:])
    said = f"{size / 2**30:.1f} GiB: {seconds:.1f} s"
    if size < 0.99 * whole:
        said += f" → {whole / 2**30:.1f} GiB: {seconds * whole / size:.0f} s"
    return f"{said}; {memory:.0f} MiB"


def _builder(*command: str) -> None:
    run = [sys.executable, "-m", "builder.cli", *command]
    subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)


COLUMNS: Mapping[str, tuple[str, Callable[[Model], str]]] = {
    "parameters": ("参数量", parameters),
    "logits": ("logits 误差", logits_error),
    "golden ids": ("标准编号", goldens),
    "templates": ("对话模板", templates),
    "stop tokens": ("停止词元", stop_tokens),
    "round trips": ("往返转换", round_trips),
    "adapter": ("适配器", adapters),
    "packaging": ("打包", packaging),
}
"""Heading -> its Chinese and what fills it; a further check is a further line."""


def main() -> int:
    options = _options()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        for name in known_recipes():
            if name in CASES_OF and (not options.model or name in options.model):
                model = Model(name, CASES_OF[name], options.gib, Path(scratch))
                sys.stderr.write(f"{name}\n")
                rows.append([name, *(check(model) for _, check in COLUMNS.values())])
    english = table(["model", *COLUMNS], rows)
    chinese = table(["模型", *(heading for heading, _ in COLUMNS.values())], rows)
    sys.stdout.write(english)
    if options.write:
        for document, text in (("docs/en/models.md", english), ("docs/zh/models.md", chinese)):
            (ROOT / document).write_text(between(document, text), "utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--gib", type=float, default=2.0, help="most of each model's weights to package")
    parser.add_argument("--scratch", type=Path, help="where the files lie meanwhile")
    parser.add_argument("model", nargs="*", help="only these")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
