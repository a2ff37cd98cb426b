"""The library of kernels, for the tests that call it directly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from daemon.backends.ms.kernels import ISAS, Kernels


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    """The library belongs to the process: what a module selects is taken back."""
    library = Kernels()
    before, threads = library.isa, library.threads
    library.select_activations("int8")
    yield library
    library.select_isa(before)
    library.threads = threads


@pytest.fixture(scope="module")
def isas(kernels: Kernels) -> Sequence[str]:
    """The instruction sets that this processor has."""
    before = kernels.isa
    found = [isa for isa in ISAS if kernels.select_isa(isa)]
    kernels.select_isa(before)
    return found
