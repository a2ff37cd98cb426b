"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PEERS = ("llama.cpp", "ctranslate2", "openvino", "vllm", "transformers")
FORMATS = ("float32", "bfloat16", "int8", "int4")
PARTS = ("peers", "daemon", "threads", "variants", "quality")
_PART_ROUNDS = 3

_EPILOG = """\
parts (--only):
  peers     MindPort and the other engines, one after the other, in rounds
  daemon    through the daemon beside the engine alone
  threads   one thread and two
  variants  long context, grouped heads, ALiBi, experts: against what the base model's speed predicts
  quality   the demo model's next tokens in each format against float32

examples:
  bash scripts/bench                                  the fastest peers, three formats: ten minutes
  bash scripts/bench --full                           every peer, format and part: about 40 minutes
  bash scripts/bench --full --minutes 60              and a second round of those that decide
  bash scripts/bench --full --resume --only variants  one part again, the rest as measured before
  bash scripts/bench --peers llama.cpp --formats float32 --streams 1,8,16
  bash scripts/bench --llama-server ~/llama.cpp/build/bin/llama-server

The model, the peers' environments and the results lie in $XDG_CACHE_HOME/mindport/benchmarks.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured, and where."""

    peers: tuple[str, ...]
    formats: tuple[str, ...]
    streams: tuple[int, ...]
    parts: tuple[str, ...]
    cpus: tuple[int, ...]
    rounds: int
    minutes: float
    """After the first round, no visit begins that would end later."""
    cache: Path
    out: Path
    llama_server: Path | None
    isa: str | None
    """Hold every engine to these instructions."""
    install: bool
    resume: bool = False
    again: tuple[str, ...] = ()
    """Parts that are measured even where earlier results are kept."""
    part_rounds: int = 1
    """Of the parts about MindPort alone, whatever the time."""
    small: bool = False
    write_docs: bool = False


def default_cache() -> Path:
    """Outside the repository: models and environments weigh gigabytes."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mindport" / "benchmarks"


def parse(arguments: Sequence[str]) -> Options:
    """Ends the program with code 2 and a sentence when an argument is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    full = bool(given.full)
    cpus = given.cpus or tuple(sorted(os.sched_getaffinity(0)))[:2]
    missing = sorted(set(cpus) - os.sched_getaffinity(0))
    if missing:
        parser.error(f"--cpus: this process may not use {missing}")
    cache = (given.cache or default_cache()).resolve()
    return Options(
        peers=given.peers if given.peers is not None else PEERS if full else PEERS[:2],
        formats=given.formats or (FORMATS if full else ("float32", "int8", "int4")),
        streams=given.streams or ((1, 8, 16) if full else (1, 8)),
        parts=given.only or (PARTS if full else ("peers", "daemon", "threads", "quality")),
        cpus=cpus,
        rounds=given.rounds or 3,
        minutes=given.minutes or (40.0 if full else 10.0),
        cache=cache,
        out=(given.out or cache / "results").resolve(),
        llama_server=given.llama_server.resolve() if given.llama_server else None,
        isa=given.isa,
        install=not given.no_install,
        resume=given.resume,
        again=given.only or (),
        part_rounds=_PART_ROUNDS if full else 1,
        small=given.small,
        write_docs=given.write_docs,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure MindPort beside other engines: same model, same machine, one after the other.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--full", action="store_true", help="all peers, formats, stream counts and parts")
    add("--only", type=_parts, help=f"parts, of {', '.join(PARTS)}")
    add("--peers", type=_peers, help=f"of {', '.join(PEERS)}; none for no peer")
    add("--formats", type=_formats, help=f"weight formats, of {', '.join(FORMATS)}")
    add("--streams", type=_numbers, help="requests at once, such as 1,8,16")
    add("--cpus", type=_cpus, help="CPUs an engine may use, such as 0,1; default the first two")
    add("--rounds", type=_positive, help="times an engine is started and measured at most; default 3")
    add("--minutes", type=_positive, help="later rounds begin only if they end within; default 10, full 40")
    add("--cache", type=Path, help="folder of the model and the environments")
    add("--out", type=Path, help="folder of the results; default in the cache")
    add("--resume", action="store_true", help="keep earlier results; measure what they lack, or --only again")
    add("--llama-server", type=Path, help="a llama-server of your own build, instead of the wheel")
    add("--isa", choices=("avx2",), help="hold every engine to AVX2, on a processor that has more")
    add("--no-install", action="store_true", help="skip peers that are not installed yet")
    add("--small", action="store_true", help="a tiny model: a trial run")
    add("--write-docs", action="store_true", help="put the tables and the chart into docs/")
    return parser


def _words(text: str, known: Sequence[str]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is none of {', '.join(known)}")
    return words


def _peers(text: str) -> tuple[str, ...]:
    return () if text == "none" else _words(text, PEERS)


def _formats(text: str) -> tuple[str, ...]:
    return _words(text, FORMATS)


def _parts(text: str) -> tuple[str, ...]:
    return _words(text, PARTS)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(word.strip()) for word in text.split(",")}))


def _cpus(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of CPUs; write 0,1")
    return tuple(sorted({int(word) for word in words}))
