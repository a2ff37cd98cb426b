"""The parts of the run that are about MindPort alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks.engines import Engine
from benchmarks.environments import run
from benchmarks.load import EngineError
from benchmarks.mindport import EngineAlone, MindPort, program, repository_of
from benchmarks.phases import LONG_PROMPT, OUTPUT, PROMPT, Phases, output_rate
from benchmarks.prompts import Prompts
from benchmarks.quality import EXAMPLE, Comparison, held_out
from benchmarks.subject import IDLE, Subject
from benchmarks.synthetic import TRIAL, make_folder
from benchmarks.variants import OUTPUT as VARIANT_OUTPUT
from benchmarks.variants import Variant, variants
from benchmarks.visits import Visitor
from contract.faults import Fault

_SEED = 3000
_TIMED_FORMATS = ("float32", "int8")
"""One of float and one of integer arithmetic."""
_SHORT_PROMPT, _ONE_TOKENS = 8, 60
_QUALITY_SAMPLE = 40

Values = dict[str, float]
Part = Callable[[Visitor], None]


def daemon(visitor: Visitor) -> None:
    """Through the daemon and without it, in turns; and what an idle worker takes."""
    setting = visitor.setting
    for number in range(setting.options.part_rounds):
        for weight_format in _timed_formats(visitor):
            for engine in (EngineAlone(setting, weight_format), MindPort(setting, weight_format)):
                engine.prepare()
                visitor.visit("daemon", engine, _cost_of(visitor, number), number)
    tiny = replace(
        setting,
        shape=TRIAL,
        model=make_folder(TRIAL.name, TRIAL.to_config(), setting.options.cache / "models"),
    )
    idle = MindPort(tiny, "float32")
    idle.prepare()
    idle.variant = IDLE
    visitor.visit("daemon", idle, _memory_of(visitor, tiny.shape.vocab))


def _timed_formats(visitor: Visitor) -> list[str]:
    return [name for name in _TIMED_FORMATS if name in visitor.setting.options.formats]


def _memory_of(visitor: Visitor, vocab: int) -> Callable[[Engine], Values]:
    def ask(engine: Engine) -> Values:
        phases = Phases(engine, Prompts(vocab, _SEED), (), visitor.measure)
        phases.warm_up()
        return phases.memory()

    return ask


def _cost_of(visitor: Visitor, number: int) -> Callable[[Engine], Values]:
    def ask(engine: Engine) -> Values:
        prompts, count = Prompts(visitor.setting.shape.vocab, _SEED + number), visitor.setting.slots
        engine.generate(prompts.many(count, 16), 4)
        times = [
            engine.generate([prompts.one(_SHORT_PROMPT)], 1)[0].first_token_s for _ in range(_ONE_TOKENS)
        ]
        values = output_rate(engine.generate(prompts.many(count, PROMPT), OUTPUT), count)
        return {
            "one_token_ms": 1000 * statistics.median(times),
            "output_per_s": values[f"output_per_s_{count}"],
        }

    return ask


def threads(visitor: Visitor) -> None:
    """One thread and all of them."""
    setting = visitor.setting
    cpus = setting.options.cpus
    rounds, chosen = range(setting.options.part_rounds), _timed_formats(visitor)
    for number, weight_format, used in product(rounds, chosen, (cpus[:1], cpus)):
        engine = EngineAlone(setting, weight_format, cpus=used)
        engine.prepare()
        visitor.visit("threads", engine, _prefill_of(visitor), number)


def _prefill_of(visitor: Visitor) -> Callable[[Engine], Values]:
    def ask(engine: Engine) -> Values:
        prompts = Prompts(visitor.setting.shape.vocab, _SEED)
        engine.generate([prompts.one(PROMPT)], 4)
        times = [engine.generate([prompts.one(LONG_PROMPT)], 1)[0].first_token_s for _ in range(3)]
        return {"prefill_per_s": LONG_PROMPT / statistics.median(times)}

    return ask


def other_shapes(visitor: Visitor) -> None:
    """The base model and its variants, in float32."""
    setting = visitor.setting
    for number, variant in product(range(setting.options.part_rounds), variants(setting)):
        name = f"{setting.shape.name}-{variant.name.replace(' ', '-').replace(':', '-')}"
        if variant.config == setting.shape.to_config():
            name = setting.shape.name
        try:
            model = make_folder(name, variant.config, setting.options.cache / "models")
            engine = EngineAlone(
                replace(setting, model=model), "float32", options={"max_sequences": 2}, variant=variant.name
            )
            engine.prepare()
        except (EngineError, Fault) as problem:
            lacking = Subject(EngineAlone.engine, "float32", 32.0, 0.0, variant=variant.name)
            visitor.lack("variants", lacking, str(problem))
            continue
        visitor.visit("variants", engine, _request_of(visitor, variant), number)


def _request_of(visitor: Visitor, variant: Variant) -> Callable[[Engine], Values]:
    """One prompt and a short answer, more than once unless it is long."""

    def ask(engine: Engine) -> Values:
        prompts = Prompts(visitor.setting.shape.vocab, _SEED)
        engine.generate([prompts.one(PROMPT // 8)], 4)
        times = 3 if variant.prompt < LONG_PROMPT * 2 else 1
        before = visitor.measure()
        answers = [engine.generate([prompts.one(variant.prompt)], VARIANT_OUTPUT)[0] for _ in range(times)]
        return {
            **before.best_of(visitor.measure()).to_values(),
            "prefill_s": statistics.median(answer.first_token_s for answer in answers),
            "decode_s": statistics.median(1 / answer.decode_per_s for answer in answers),
        }

    return ask


def quality(visitor: Visitor) -> None:
    """The demo model in each format, against float32."""
    setting = visitor.setting
    visitor.diary.forget(("quality",))
    comparison: Comparison | None = None
    for weight_format in ("float32", *(name for name in setting.options.formats if name != "float32")):
        demo = replace(setting, model=EXAMPLE)
        repository = repository_of(demo, EXAMPLE.name, weight_format)
        _package_demo(repository, weight_format)
        if comparison is None:
            tokenizer = next(repository.glob("*/1/tokenizer.json"))
            comparison = Comparison(held_out(tokenizer, _QUALITY_SAMPLE if setting.options.small else None))
        engine = DemoModel(demo, weight_format, options={"max_sequences": 8}, variant="demo model")
        visitor.visit("quality", engine, comparison.ask)


class DemoModel(EngineAlone):
    """Packaged from the examples by its recipe."""

    def prepare(self) -> None:
        return None


def _package_demo(repository: Path, weight_format: str) -> None:
    flags = ["--dtype", weight_format] if weight_format in ("float32", "bfloat16") else []
    if not flags:
        flags = ["--quantize", weight_format, "--dtype", "bfloat16"]
    command = [program("builder"), "package", "--model", EXAMPLE.name, "--out", str(repository), "--quiet"]
    run([*command, "--version", "1", "--replace", *flags], "builder package")


PARTS: dict[str, Part] = {
    "daemon": daemon,
    "threads": threads,
    "variants": other_shapes,
    "quality": quality,
}
