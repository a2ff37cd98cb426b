"""The ``doctor`` command: what about this machine and installation would get in the way."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from builder.forecast import size_text
from builder.report import say
from contract.faults import Fault
from contract.memory import available_memory, total_memory
from contract.networks import KNOWN_NETWORKS, networks_folder

Severity = Literal["ok", "warning", "error"]

_SOURCE_TREE = Path(__file__).parent.parent
_PORTS = {1025: "HTTP", 1026: "management", 1027: "metrics", 8001: "gRPC"}
_REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(?P<bounds>[^;]*)(;\s*extra == ['\"](?P<extra>[^'\"]+)['\"])?"
)
_LOW_MEMORY = 4 * 2**30
_LOW_DISK = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    subject: str
    severity: Severity
    message: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def examine() -> list[Finding]:
    """Every finding, in a fixed order."""
    findings = [_python()]
    findings.extend(_dependencies())
    findings.append(_mindspore())
    findings.extend(_kernels())
    findings.append(_networks())
    findings.append(_import_name())
    findings.extend((_cpu(), _memory(), _disk()))
    findings.extend(_port(port, use) for port, use in _PORTS.items())
    return findings


def print_findings(findings: list[Finding]) -> None:
    """The findings for people, then their number."""
    for finding in findings:
        say(f"{finding.severity:8}{finding.subject:24}{finding.message}")
        if finding.remedy:
            say(f"{'':8}{'':24}-> {finding.remedy}")
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
    say(f"{errors} errors, {warnings} warnings")


def _python() -> Finding:
    version = platform.python_version()
    if tuple(sys.version_info)[:2] == (3, 11):
        return Finding("python", "ok", version)
    return Finding(
        "python",
        "error",
        f"{version}; MindSpore 2.9 needs 3.11",
        "make a virtual environment with Python 3.11",
    )


def requirements() -> list[tuple[str, str, str | None]]:
    """(name, version bounds, extra) of everything MindPort declares."""
    try:
        lines = metadata.requires("mindport") or []
    except metadata.PackageNotFoundError:
        lines = _declared_in_tree()
    found = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is not None:
            found.append((match["name"], match["bounds"].strip(), match["extra"]))
    return found


def _declared_in_tree() -> list[str]:
    import tomllib

    with contextlib.suppress(OSError, tomllib.TOMLDecodeError, KeyError):
        project = tomllib.loads((_SOURCE_TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {})
        optional = [f"{line} ; extra == '{extra}'" for extra, lines in extras.items() for line in lines]
        return [*project["dependencies"], *optional]
    return []


def _dependencies() -> Iterator[Finding]:
    for name, bounds, extra in requirements():
        if extra is not None or name == "mindspore":
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "error", "is not installed", f"pip install '{name}{bounds}'")
            continue
        if satisfies(version, bounds):
            yield Finding(name, "ok", version)
        else:
            yield Finding(
                name, "error", f"{version} does not satisfy {bounds}", f"pip install '{name}{bounds}'"
            )


def satisfies(version: str, bounds: str) -> bool:
    """Whether a release meets ``>=1,<2``-like bounds; only the release numbers are compared."""
    comparisons = {
        ">=": lambda left, right: left >= right,
        "<=": lambda left, right: left <= right,
        "==": lambda left, right: left == right,
        "!=": lambda left, right: left != right,
        ">": lambda left, right: left > right,
        "<": lambda left, right: left < right,
    }
    for bound in filter(None, bounds.split(",")):
        match = re.match(r"\s*(>=|<=|==|!=|>|<)\s*([0-9.]+)", bound)
        if match is None:
            continue
        left, right = _release(version), _release(match[2])
        width = max(len(left), len(right))
        padded = [numbers + (0,) * (width - len(numbers)) for numbers in (left, right)]
        if not comparisons[match[1]](*padded):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _mindspore() -> Finding:
    wanted = next((bounds for name, bounds, _ in requirements() if name == "mindspore"), "")
    try:
        version = metadata.version("mindspore")
    except metadata.PackageNotFoundError:
        remedy = "pip install 'mindport[ms]'; packaging works without it"
        return Finding("mindspore", "warning", "is not installed: the ms backend cannot run here", remedy)
    if not satisfies(version, wanted):
        return Finding(
            "mindspore", "error", f"{version} does not satisfy {wanted}", f"pip install 'mindspore{wanted}'"
        )
    numpy = metadata.version("numpy")
    if not satisfies(numpy, "<2"):
        return Finding(
            "mindspore", "error", f"{version} fails with numpy {numpy}", "pip install 'mindport[ms]'"
        )
    return Finding("mindspore", "ok", f"{version} with numpy {numpy}")


def _kernels() -> Iterator[Finding]:
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    spec = importlib.util.find_spec("daemon")
    folders = (
        [Path(place) / "backends/ms/kernels" for place in (spec.submodule_search_locations or [])]
        if spec
        else []
    )
    libraries = [path for folder in folders for path in sorted(folder.glob("*.so"))]
    if libraries:
        yield Finding("compiled kernels", "ok", ", ".join(path.name for path in libraries))
    else:
        remedy = (
            "install again" if compiler else "install a C++ compiler (apt install g++), then install again"
        )
        yield Finding(
            "compiled kernels", "warning", "are not there: the ms backend cannot run on this CPU", remedy
        )
    if compiler:
        yield Finding("compiler", "ok", compiler)
    else:
        severity: Severity = "ok" if libraries else "warning"
        yield Finding("compiler", severity, "none found", "" if libraries else "apt install g++")


def _networks() -> Finding:
    try:
        folder = networks_folder()
    except Fault as fault:
        return Finding("networks", "error", fault.message, fault.hint)
    names = sorted(path.name for path in folder.glob("[!_]*.py"))
    return Finding("networks", "ok", f"{', '.join(names)}; {len(KNOWN_NETWORKS)} known versions")


def _import_name() -> Finding:
    """python-daemon and MindPort both install a package named ``daemon``."""
    spec = importlib.util.find_spec("daemon")
    places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
    own = _SOURCE_TREE / "daemon"
    clash = None
    with contextlib.suppress(metadata.PackageNotFoundError):
        clash = metadata.version("python-daemon")
    if places and places[0] != own.resolve():
        remedy = "pip uninstall python-daemon, then install MindPort again"
        return Finding("import name daemon", "error", f"belongs to {places[0]}", remedy)
    if clash is not None:
        remedy = "keep them in separate environments"
        return Finding("import name daemon", "warning", f"is also used by python-daemon {clash}", remedy)
    return Finding("import name daemon", "ok", str(places[0]) if places else "free")


def _cpu() -> Finding:
    machine, cores = platform.machine(), os.cpu_count() or 1
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^(flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
        flags = set(match[2].split()) if match else set()
    shown = [
        name
        for name in ("avx2", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd")
        if name in flags
    ]
    message = f"{machine}, {cores} cores, {' '.join(shown) or 'no vector extensions found'}"
    if machine in ("x86_64", "AMD64") and "avx2" not in flags:
        return Finding("cpu", "warning", message, "the portable kernels are slow; use a machine with AVX2")
    return Finding("cpu", "ok", message)


def _memory() -> Finding:
    room = available_memory()
    message = f"{size_text(room.bytes)} of {size_text(total_memory())} available, bound by {room.bound}"
    if room.bytes < _LOW_MEMORY:
        remedy = "small models only; close other programs or raise that limit for larger ones"
        return Finding("memory", "warning", message, remedy)
    return Finding("memory", "ok", message)


def _disk() -> Finding:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    message = f"{size_text(free)} free in {folder}"
    if free < _LOW_DISK:
        return Finding(
            "disk", "warning", message, "a model needs its own size again; free some space or use --link"
        )
    return Finding("disk", "ok", message)


def _port(port: int, use: str) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            remedy = f"a daemon may be running (daemon status); otherwise choose another {use} port"
            return Finding(f"port {port}", "warning", f"{use}: {error.strerror}", remedy)
    return Finding(f"port {port}", "ok", f"{use}: free")
