"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PEERS = ("llama.cpp", "transformers")
NOT_WIRED = ("vllm", "openvino", "ctranslate2")
"""Peers that are listed as missing rather than forgotten."""
FORMATS = ("float32", "bfloat16", "int8", "int4")

_EPILOG = """\
examples:
  bash scripts/bench                                  float32 and int8, 1 and 8 streams: minutes
  bash scripts/bench --full                           every format, 1, 8 and 16 streams: about an hour
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
    cpus: tuple[int, ...]
    rounds: int
    cache: Path
    out: Path
    llama_server: Path | None
    install: bool
    small: bool = False


def default_cache() -> Path:
    """Outside the repository: models and environments weigh gigabytes."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mindport" / "benchmarks"


def parse(arguments: Sequence[str]) -> Options:
    """Ends the program with code 2 and a sentence when an argument is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    full = bool(given.full)
    formats = given.formats or (FORMATS if full else ("float32", "int8"))
    streams = given.streams or ((1, 8, 16) if full else (1, 8))
    cpus = given.cpus or tuple(sorted(os.sched_getaffinity(0)))[:2]
    missing = sorted(set(cpus) - os.sched_getaffinity(0))
    if missing:
        parser.error(f"--cpus: this process may not use {missing}")
    cache = (given.cache or default_cache()).resolve()
    return Options(
        peers=given.peers if given.peers is not None else PEERS + NOT_WIRED,
        formats=formats,
        streams=streams,
        cpus=cpus,
        rounds=given.rounds or (3 if full else 2),
        cache=cache,
        out=(given.out or cache / "results").resolve(),
        llama_server=given.llama_server.resolve() if given.llama_server else None,
        install=not given.no_install,
        small=given.small,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure MindPort beside other engines: same model, same machine, one after the other.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="all formats and stream counts, three rounds")
    parser.add_argument("--peers", type=_peers, help=f"of {', '.join(PEERS + NOT_WIRED)}; none for no peer")
    parser.add_argument("--formats", type=_formats, help=f"weight formats, of {', '.join(FORMATS)}")
    parser.add_argument("--streams", type=_numbers, help="requests at once, such as 1,8,16")
    parser.add_argument(
        "--cpus", type=_cpus, help="CPUs an engine may use, such as 0,1; default the first two"
    )
    parser.add_argument("--rounds", type=_positive, help="times every engine is started and measured")
    parser.add_argument("--cache", type=Path, help="folder of the model and the environments")
    parser.add_argument("--out", type=Path, help="folder of the results; default in the cache")
    parser.add_argument(
        "--llama-server", type=Path, help="a llama-server of your own build, instead of the wheel"
    )
    parser.add_argument("--no-install", action="store_true", help="skip peers that are not installed yet")
    parser.add_argument("--small", action="store_true", help="a tiny model and short phases: a trial run")
    return parser


def _words(text: str, known: Sequence[str]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is none of {', '.join(known)}")
    return words


def _peers(text: str) -> tuple[str, ...]:
    return () if text == "none" else _words(text, PEERS + NOT_WIRED)


def _formats(text: str) -> tuple[str, ...]:
    return _words(text, FORMATS)


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
