"""``daemon check``: everything that can be told about a start without starting, all problems at once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.faults import Fault, Problem
from contract.memory import available_memory
from daemon.backends.ms.weights import estimate
from daemon.listeners import bind
from daemon.repository.checks import check_directory
from daemon.repository.disk import VersionOnDisk, scan
from daemon.settings import MsOptions, Settings
from daemon.state import StateDirectory

STATE_FREE_BYTES = 16 << 20


@dataclass
class Report:
    """What was found: facts for people, warnings, and problems that would stop the start."""

    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        problems = [problem.to_dict() for problem in self.problems]
        return {"ok": not problems, "facts": self.facts, "problems": problems}


def check_all(settings: Settings) -> Report:
    """Settings are valid already; this looks at the machine: repository, models, ports, keys, state."""
    report = Report()
    _check_models(settings, report)
    _check_state(settings, report)
    _check_ports(settings, report)
    if settings.api_key_file is not None:
        _check_keys(settings.api_key_file, report)
    return report


def _check_models(settings: Settings, report: Report) -> None:
    try:
        versions = scan(settings.repository)
    except Fault as fault:
        report.problems.append(Problem("repository", fault.message, fault.hint))
        return
    wanted = set(settings.model)
    names = {version.name for version in versions}
    known = names | {f"{version.name}@{version.version}" for version in versions}
    listing = f"models in the repository: {', '.join(sorted(names)) or 'none'}"
    for missing in sorted(wanted - known):
        report.problems.append(Problem("model", f"no model {missing!r}", listing))
    if settings.default_model and settings.default_model not in known:
        report.problems.append(Problem("default_model", f"no model {settings.default_model!r}", listing))
    if not versions:
        report.warnings.append("the repository holds no models: build one with builder package")
    needs: dict[str, int] = {}
    for version in versions:
        if not wanted or version.name in wanted or f"{version.name}@{version.version}" in wanted:
            needs[version.name] = _check_version(version, settings.ms, report)
    _check_memory(needs, report)


def _check_version(version: VersionOnDisk, options: MsOptions, report: Report) -> int:
    """The memory of its weights."""
    where = f"{version.name}@{version.version}" if version.version else version.name
    if version.fault is not None:
        report.problems.append(Problem(where, version.fault.message, version.fault.hint))
        return 0
    try:
        check_directory(version.directory, manifest_required=version.backend == "ms")
        need = 0
        if version.backend == "ms":
            need = estimate(version.directory, options.dtype, head_dtype=options.head_dtype).weight_bytes
    except Fault as fault:
        report.problems.append(Problem(where, fault.message, fault.hint))
        return 0
    size = sum(path.stat().st_size for path in version.directory.glob("*.safetensors"))
    report.facts.append(f"model {where}: backend {version.backend}, weights {size / 2**20:.0f} MiB")
    return need


def _check_memory(needs: dict[str, int], report: Report) -> None:
    """Of one version of each model, the highest, which is what a start loads."""
    room, total = available_memory(), sum(needs.values())
    if total > room.bytes:
        names = ", ".join(name for name, need in sorted(needs.items()) if need)
        message = (
            f"the weights of {names} take {total / 2**30:.1f} GiB and {room.bytes / 2**30:.1f} GiB of memory "
            f"are available, bound by {room.bound}"
        )
        hint = "choose models with --model, hold them in fewer bits with --ms-dtype, or raise that limit"
        report.problems.append(Problem("memory", message, hint))


def _check_state(settings: Settings, report: Report) -> None:
    state = StateDirectory(settings.state_path)
    try:
        state.create()
    except Fault as fault:
        report.problems.append(Problem("state_dir", fault.message, fault.hint))
        return
    report.facts.append(f"state directory {state.path}")
    if state.running():
        pid = state.read().get("pid")
        report.problems.append(Problem("state_dir", f"a daemon is running there (pid {pid})", "daemon stop"))
    if shutil.disk_usage(state.path).free < STATE_FREE_BYTES:
        report.problems.append(Problem("state_dir", f"the disk of {state.path} is full", "free some space"))


def _check_ports(settings: Settings, report: Report) -> None:
    hosts = {
        "http_port": settings.host,
        "grpc_port": settings.host,
        "management_port": settings.management_host,
        "metrics_port": settings.management_host,
    }
    seen: set[int] = set()
    for name, host in hosts.items():
        port = getattr(settings, name)
        if not port or port in seen:
            continue
        seen.add(port)
        try:
            bind(name, host, port).sock.close()
        except Fault as fault:
            report.problems.append(Problem(name, fault.message.removeprefix(f"{name}: "), fault.hint))
        else:
            report.facts.append(f"{name} {host}:{port} is free")


def _check_keys(path: Path, report: Report) -> None:
    from daemon.api_keys import read_api_keys

    try:
        count = len(read_api_keys(path))
    except Fault as fault:
        report.problems.append(Problem("api_key_file", fault.message, fault.hint))
        return
    report.facts.append(f"{count} API key{'s' if count != 1 else ''} in {path}")
