"""The network file of a model directory: imported, checked, built."""

from __future__ import annotations

import importlib.util
import sys
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

from contract.faults import Fault, FaultKind
from daemon.backends.ms.kernels import KernelError


def build(model_dir: Path, config: dict[str, Any], device: Any) -> Any:
    """The network of a model directory, for a ``device``. Raises ``Fault`` when it does not fit.

    Whether its code may be trusted has been asked before.
    """
    network_class = _network_class(model_dir, config)
    try:
        return network_class(config, device)
    except (Fault, KernelError):
        raise
    except Exception as error:
        message = f"the network of {model_dir} cannot be built: {first_line(error)}"
        raise Fault(FaultKind.INVALID_MODEL, message) from error


def _network_class(model_dir: Path, config: dict[str, Any]) -> Any:
    name = (config.get("serving") or {}).get("network")
    if not isinstance(name, str) or Path(name).name != name:
        message = f'{model_dir}/config.json, block "serving", must name the network file, and has {name!r}'
        raise Fault(FaultKind.INVALID_MODEL, message)
    module = _import_network(model_dir / name)
    network = getattr(module, "Network", None)
    if network is None:
        raise Fault(FaultKind.INVALID_MODEL, f"{model_dir / name} has no class Network")
    return network


def _import_network(path: Path) -> ModuleType:
    from daemon.backends.ms.layers import LAYER_API_VERSION

    if not path.is_file():
        raise Fault(FaultKind.INVALID_MODEL, f"the network file {path} does not exist")
    unique = f"mindport_network_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise Fault(FaultKind.INVALID_MODEL, f"the network file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # MindSpore's parser looks the module of a Cell up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        message = f"the network file {path} cannot be loaded: {error}"
        raise Fault(FaultKind.INVALID_MODEL, message) from error
    wanted = getattr(module, "LAYER_API", None)
    if not isinstance(wanted, int) or not 1 <= wanted <= LAYER_API_VERSION:
        message = f"{path} is written for layer API {wanted}; this MindPort has {LAYER_API_VERSION}"
        hint = "upgrade MindPort, or package the model again"
        raise Fault(FaultKind.INVALID_MODEL, message, hint)
    return module


def first_line(error: Exception) -> str:
    """MindSpore frames its messages with rules of dashes and appends its own call stack."""
    return next((line for line in str(error).splitlines() if line.strip(" -")), type(error).__name__)
