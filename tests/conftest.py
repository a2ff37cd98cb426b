"""Settings of the test process itself."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# MindSpore registers the same descriptors as protobuf's C++ runtime, and one process cannot hold both. Users
# never meet this: MindSpore lives in workers, which load no gRPC. Tests of the engine run in this process.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

# How long an example takes says something of the machine, not of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell makes what it runs in the background deaf to Ctrl-C, and so the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
