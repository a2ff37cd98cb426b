"""``python -m tests.soak --minutes 30``: exits with 0 when nothing was lost and memory stayed flat."""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx2

from tests.scenarios.terminal import RunningDaemon, run, running_daemon
from tests.soak.traffic import Tally, Traffic

MODEL = "telechat2_tiny"
SMALL = ("--ms-max-sequences", "4", "--ms-kv-cache-mb", "6", "--max-waiting", "6", "--max-running", "8")
"""So little room that requests are preempted, displaced and refused."""
GROWTH = 0.05
SLACK_BYTES = 24 << 20
"""What a worker may grow between the second quarter and the last, whatever its size."""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=12, help="callers at a time")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between a caller's requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repository", type=Path, help=f"with {MODEL}; packaged if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        repository = options.repository or _package(Path(folder) / "repository")
        with running_daemon(repository, Path(folder) / "state", "--model", MODEL, *SMALL) as daemon:
            problems = soak(daemon, options.minutes * 60, options.streams, options.pause, options.seed)
    for problem in problems[:20]:
        say(f"PROBLEM {problem}")
    say("ok" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def _package(repository: Path) -> Path:
    answer = run("builder", "package", "--model", MODEL, "--out", str(repository), "--quiet")
    if answer.code != 0:
        raise SystemExit(answer.err)
    return repository


def soak(daemon: RunningDaemon, seconds: float, streams: int, pause_s: float, seed: int) -> list[str]:
    """Everything that was wrong."""
    tally, memory = Tally(), Memory(worker_pid(daemon))
    begun = time.monotonic()
    asyncio.run(_load(daemon, tally, memory, (seconds, streams, pause_s, seed)))
    problems = [*tally.problems, *memory.problems(), *_settled(daemon, tally)]
    took_s = time.monotonic() - begun
    say(f"{tally.total} requests in {took_s:.0f} s, {tally.total / took_s:.1f} a second")
    for ending, count in sorted(tally.ended.items()):
        say(f"  {ending:28}{count:8}")
    say(f"worker's memory: {memory.summary()}")
    return problems


async def _load(
    daemon: RunningDaemon, tally: Tally, memory: Memory, plan: tuple[float, int, float, int]
) -> None:
    seconds, streams, pause_s, seed = plan
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    callers = [
        Traffic(daemon.http, daemon.grpc, MODEL, seed * 1000 + number, tally) for number in range(streams)
    ]
    tasks = [asyncio.create_task(caller.run(stop, pause_s)) for caller in callers]
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (tally.problems or stop.is_set()):
        await asyncio.sleep(min(1.0, seconds / 40))
        memory.sample()
    stop.set()
    await asyncio.gather(*tasks)


def _settled(daemon: RunningDaemon, tally: Tally) -> list[str]:
    """Nothing runs, waits or holds memory any more; each request the daemon took has one outcome."""
    for _ in range(50):
        page = metrics(daemon)
        if not page["num_requests_running"] + page["num_requests_waiting"]:
            break
        time.sleep(0.1)
    problems = [
        f"{name} is {page[name]:g} after all requests have ended"
        for name in ("num_requests_running", "num_requests_waiting", "npu_cache_usage_perc")
        if page[name]
    ]
    outcomes = {
        outcome: sum(value for key, value in page.items() if f'outcome="{outcome}"' in key)
        for outcome in ("success", "failed", "refused", "cancelled")
    }
    say("the daemon counted " + ", ".join(f"{int(count)} {name}" for name, count in outcomes.items()))
    say(f"preemptions: {page['num_preemptions_total']:g}")
    unknown = sum(
        value for key, value in page.items() if key.startswith("mindport_requests") and 'model=""' in key
    )
    if sum(outcomes.values()) != page["request_received_total"] + unknown:
        problems.append(f"{page['request_received_total'] + unknown:g} requests, and outcomes {outcomes}")
    finished = sum(count for ending, count in tally.ended.items() if ending.endswith("finished"))
    if not finished <= outcomes["success"]:
        problems.append(f"callers saw {finished} whole answers, the daemon {outcomes['success']:g}")
    if outcomes["failed"]:
        problems.append(f"{outcomes['failed']:g} requests failed")
    restarts = sum(model["restarts"] for model in daemon.models())
    return [*problems, f"the worker was restarted {restarts} times"] if restarts else problems


def metrics(daemon: RunningDaemon) -> dict[str, float]:
    """The page's samples, those with one set of labels by their bare name, too."""
    lines = httpx2.get(f"{daemon.info['metrics']}/metrics", timeout=10).text.splitlines()
    samples = {
        key: float(value)
        for key, value in (line.rsplit(" ", 1) for line in lines if line[:1] not in ("#", ""))
    }
    return samples | {key.partition("{")[0]: value for key, value in samples.items()}


def worker_pid(daemon: RunningDaemon) -> int:
    return next(int(model["pid"]) for model in daemon.models() if model["name"] == MODEL)


class Memory:
    """Of one process, over time."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._samples: list[int] = []

    def sample(self) -> None:
        for line in self._status.read_text("ascii").splitlines():
            if line.startswith("VmRSS:"):
                self._samples.append(int(line.split()[1]) << 10)

    def problems(self) -> list[str]:
        early, late = self._early_and_late()
        allowed = max(SLACK_BYTES, int(GROWTH * early))
        return [f"the worker grew: {self.summary()}"] if late > early + allowed else []

    def summary(self) -> str:
        early, late = self._early_and_late()
        mib = 2**20
        return (
            f"{early / mib:.1f} MiB in the second quarter, {late / mib:.1f} MiB in the last, "
            f"peak {max(self._samples) / mib:.1f} MiB"
        )

    def _early_and_late(self) -> tuple[int, int]:
        quarter = max(1, len(self._samples) // 4)
        early = self._samples[quarter : 2 * quarter] or self._samples
        return int(statistics.median(early)), int(statistics.median(self._samples[-quarter:]))


if __name__ == "__main__":
    sys.exit(main())
