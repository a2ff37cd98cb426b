"""The network files MindPort has shipped, by SHA-256: a model directory's code that runs without asking.

Append-only from the first release on: a directory packaged by an old MindPort keeps loading with a new one.
``scripts/update_networks.py`` maintains the list.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind


class KnownNetwork(NamedTuple):
    name: str
    """File name in a model directory."""
    layer_api: int
    """Version of the layer API that it was written for."""


KNOWN_NETWORKS: Mapping[str, KnownNetwork] = MappingProxyType(
    {
        # generated: begin
        "69b0f1b094ed1a6d15ae935e7ccf60d2ca5e24743cfeb870fd569a1f7fca41ac": KnownNetwork("telechat2.py", 1),
        "4446142f981204bff90b944ff0da66b6c5675bfba0dbe4f2177a1fea03957911": KnownNetwork("llama.py", 1),
        "d7a99d6e4de02f36c1d78d06f9ba2e00aa2b82339747d2486ff49233d8f49f7f": KnownNetwork("decoder.py", 1),
        "e7b608e7e15916e9990b759b11d1e6a7b7ec46d94f73da26bed0ce7083163754": KnownNetwork("telechat2.py", 1),
        "bf568f7640446f3bea7580222c6cfd07e9f6f351f012c5f2c6c87b3a95f29eda": KnownNetwork("decoder.py", 2),
        "7fe836a096f3f8e17dcae5b8a40c33603b53a176f05d2d89c2fe34c01555d841": KnownNetwork("telechat2.py", 2),
        # generated: end
    }
)
"""SHA-256 of the file's content -> what it is."""


def is_known(sha256: str) -> bool:
    """Whether a file with this SHA-256 is a network that MindPort shipped."""
    return sha256 in KNOWN_NETWORKS


def networks_folder() -> Path:
    """Where this installation keeps its networks. Found without importing the daemon. Raises ``Fault``."""
    spec = importlib.util.find_spec("daemon")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(location) / "backends" / "ms" / "networks"
        if folder.is_dir():
            return folder
    message = "the networks of the ms backend are not installed"
    raise Fault(FaultKind.NOT_FOUND, message, "install MindPort again with: pip install mindport")


def network_source(name: str) -> Path:
    """The network file ``name`` (``telechat2.py``) of this installation. Raises ``Fault``."""
    folder = networks_folder()
    path = folder / name
    if not path.is_file():
        shipped = ", ".join(sorted(found.name for found in folder.glob("[!_]*.py"))) or "none"
        raise Fault(FaultKind.NOT_FOUND, f"there is no network {name} in {folder}", f"there are: {shipped}")
    return path


def shipped_network(name: str) -> tuple[Path, KnownNetwork]:
    """The network file ``name`` and its entry in the list. Raises ``Fault`` when it is not on the list."""
    path = network_source(name)
    known = KNOWN_NETWORKS.get(sha256_of_file(path))
    if known is None:
        hint = "in a source tree run: python scripts/update_networks.py; otherwise install MindPort again"
        raise Fault(FaultKind.UNTRUSTED_CODE, f"{path} is not on the list of known networks", hint)
    return path, known
