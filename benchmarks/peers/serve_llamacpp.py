"""llama.cpp's server from the xllamacpp wheel: python serve_llamacpp.py MODEL PORT THREADS SLOTS CONTEXT."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any


def main(model: str, port: int, threads: int, slots: int, context: int) -> None:
    xllamacpp: Any = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = context
    parameters.kv_unified = False
    parameters.cache_ram_mib = 0
    parameters.fit_params = False
    parameters.ui = False
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    print("listening at", server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:6]))
