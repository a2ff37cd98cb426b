"""Bring the list of known networks in contract/networks.py up to date.

python scripts/update_networks.py           add the networks of the source tree to the list
python scripts/update_networks.py --fresh   forget the others; only before the first release
python scripts/update_networks.py --check   change nothing, exit 1 when a network is missing
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from contract.checksums import sha256_of_file  # noqa: E402
from contract.networks import KNOWN_NETWORKS, KnownNetwork, networks_folder  # noqa: E402

LIST_FILE = ROOT / "contract" / "networks.py"
BEGIN = "        # generated: begin\n"
END = "        # generated: end\n"


def layer_api_of(path: Path) -> int:
    """The constant ``LAYER_API`` of a network file, read without running it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == "LAYER_API" for target in targets):
            value = (
                ast.literal_eval(node.value)
                if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
                else None
            )
            if isinstance(value, int):
                return value
    raise SystemExit(f"{path}: no constant LAYER_API; write LAYER_API = 1 at its top level")


def shipped() -> dict[str, KnownNetwork]:
    """Every network of the source tree that says which layer API it needs."""
    files = sorted(networks_folder().glob("[!_]*.py"))
    return {sha256_of_file(path): KnownNetwork(path.name, layer_api_of(path)) for path in files}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    current = shipped()
    missing = [network.name for digest, network in current.items() if digest not in KNOWN_NETWORKS]
    if options.check:
        print(f"not on the list: {', '.join(missing)}" if missing else "the list is up to date")
        return 1 if missing else 0
    networks = current if options.fresh else {**KNOWN_NETWORKS, **current}
    lines = [
        f'        "{digest}": KnownNetwork("{entry.name}", {entry.layer_api}),\n'
        for digest, entry in networks.items()
    ]
    text = LIST_FILE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    LIST_FILE.write_text(head + BEGIN + "".join(lines) + END + tail, encoding="utf-8")
    print(f"{len(networks)} networks listed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
