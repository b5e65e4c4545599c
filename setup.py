"""Builds the C++ backend of plr_kernels and the C++ part of plr.prepare. Metadata and settings are in pyproject.toml.

Both are optional: where they cannot be built, the installation succeeds and says what is missing.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import setup
from setuptools.errors import CompileError

SOURCES = Path("csrc")
# On macOS ARCHFLAGS names what is compiled for, where that is not this machine.
_ARCHITECTURES = os.environ.get("ARCHFLAGS", "") if sys.platform == "darwin" else ""
ON_X86 = "arm64" not in _ARCHITECTURES if _ARCHITECTURES else platform.machine().lower() in ("x86_64", "amd64")
# Where the compiler does not know its flags, this file is compiled without, and then has no kernels.
COMPILED_IF_KNOWN = "kernels_avx512_amx.cpp"
# Only these files may use more than the baseline instruction set: which of them runs is decided when the process runs.
X86_FLAGS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512.cpp": ["-mavx512f", "-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512_bf16.cpp": ["-mavx512bf16", "-mavx512f", "-mavx2", "-mfma", "-mf16c"],
    COMPILED_IF_KNOWN: ["-mamx-bf16", "-mamx-tile", "-mavx512bf16", "-mavx512f", "-mavx2", "-mfma", "-mf16c"],
}


def warn(reason):
    """Say that there will be no C++ extension."""
    print(
        f"\nWARNING: C++ of plr_kernels or plr.prepare is not built: {reason}.\n"
        "It needs g++ or clang++ with C++17. Everything works without it, slower on CPUs; to build it, install a "
        "compiler and run `pip install -e .` again.\n",
        file=sys.stderr,
    )


def extension_options():
    """The arguments of `setup` that describe the extension."""
    try:
        from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
    except ImportError as error:
        warn(error)
        return {}

    class BuildKernels(build_ext):
        """Gives each file its own flags, and never fails an installation."""

        warned = False

        def build_extension(self, extension):
            if self.compiler.compiler_type == "msvc":  # `optional` lets the installation go on
                self._warn_once("MSVC lacks what the sources use of GNU's C++ (vector types, 128-bit integers)")
                raise CompileError("no compiler for C++ with GNU's extensions")
            compile_file = self.compiler._compile

            def compile_with_file_flags(obj, src, ext, cc_args, extra_postargs, pp_opts):
                file_flags = X86_FLAGS.get(Path(src).name, [])
                try:
                    compile_file(obj, src, ext, cc_args, [*extra_postargs, *file_flags], pp_opts)
                except CompileError:
                    if Path(src).name != COMPILED_IF_KNOWN:
                        raise
                    compile_file(obj, src, ext, cc_args, extra_postargs, pp_opts)

            self.compiler._compile = compile_with_file_flags
            try:
                super().build_extension(extension)
            except Exception as error:  # each version of setuptools has its own
                self._warn_once(error)
                raise

        def _warn_once(self, reason):
            if not self.warned:  # both extensions lack the same
                warn(reason)
            self.warned = True

    sources = [path for folder in ("", "engine", "simd") for path in (SOURCES / folder).glob("*.cpp")]
    compile_arguments = ["-O3", "-pthread"]
    link_arguments = ["-pthread", *(["-ldl"] if sys.platform == "linux" else [])]
    kernels = Pybind11Extension(
        "plr_kernels._cpp",
        sorted(str(path) for path in sources if ON_X86 or path.name not in X86_FLAGS),
        depends=sorted(str(path) for path in SOURCES.rglob("*.h")),
        cxx_std=17,
        define_macros=[("PLR_KERNELS_X86", None)] if ON_X86 else [],
        extra_compile_args=compile_arguments,
        extra_link_args=link_arguments,
        optional=True,  # setuptools goes on where it fails
    )
    data = Pybind11Extension(
        "plr.prepare._cpp",
        sorted(str(path) for path in [*SOURCES.glob("data/*.cpp"), SOURCES / "threads.cpp"]),
        depends=sorted(str(path) for path in [*SOURCES.glob("data/*.h"), SOURCES / "threads.h"]),
        cxx_std=17,
        extra_compile_args=compile_arguments,
        extra_link_args=link_arguments,
        optional=True,
    )
    ParallelCompile().install()
    return {"ext_modules": [kernels, data], "cmdclass": {"build_ext": BuildKernels}}


setup(**extension_options())
