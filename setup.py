"""Builds the kernels of the `ms` engine: one shared library, each instruction set in its own translation
unit.

Everything else about the package is in pyproject.toml. Without a C++ compiler the package installs all the
same.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Path("daemon/backends/ms/kernels")
FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Fused multiply-add only where the source says so: results are identical on every instruction set.
FLAGS += ["-ffp-contract=off"]
# False alarms of gcc 12 inside its own intrinsics headers.
FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512_VNNI = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"]
X86_FLAGS = {
    "kernels_avx2.cc": AVX2,
    "kernels_avx512.cc": ["-mavx512f", *AVX2],
    "whole_avx2.cc": AVX2,
    "whole_avx2_7bit.cc": AVX2,
    "whole_avxvnni.cc": ["-mavxvnni", *AVX2],
    "whole_avx512vnni.cc": [*AVX512_VNNI, *AVX2],
}
# NEON itself needs none.
ARM_FLAGS = {
    "whole_dotprod.cc": ["-march=armv8.2-a+dotprod"],
    # In the order of the source: gcc's own takes more registers than there are.
    "whole_i8mm.cc": ["-march=armv8.2-a+dotprod+i8mm", "-fno-schedule-insns"],
}
ISA_FLAGS = {"x86_64": X86_FLAGS, "amd64": X86_FLAGS, "aarch64": ARM_FLAGS, "arm64": ARM_FLAGS}
OPTIONAL = ("vnni", "dotprod", "i8mm")  # instructions that a compiler may not know yet


class BuildKernels(build_ext):
    """Compiles each source with the flags of its instruction set and links a plain library."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library keeps its name: it is opened by path, never imported."""
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No module initialiser is exported."""
        return list(ext.export_symbols)

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        flags = next((found for name, found in ISA_FLAGS.items() if self.plat_name.endswith(name)), {})

        def compile_one(source: str) -> list[str]:
            return self._compile(source, flags.get(Path(source).name, []), ext.depends)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [path for paths in pool.map(compile_one, ext.sources) for path in paths]
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")

    def _compile(self, source: str, isa: list[str], depends: list[str]) -> list[str]:
        """One source. The newest instructions are left out where the compiler does not know them."""

        def compile_with(flags: list[str]) -> list[str]:
            return list(
                self.compiler.compile(
                    [source], output_dir=self.build_temp, extra_postargs=FLAGS + flags, depends=depends
                )
            )

        try:
            return compile_with(isa)
        except CompileError:
            if not any(name in flag for name in OPTIONAL for flag in isa):
                raise
            return compile_with([])


setup(
    ext_modules=[
        Extension(
            "daemon.backends.ms.kernels.libmindport_kernels",
            sources=sorted(str(path) for path in KERNELS.glob("*.cc")),
            depends=sorted(str(path) for path in KERNELS.glob("*.h")),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
