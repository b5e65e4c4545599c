"""Compiles, without a GPU, exactly what a launcher would launch, and reads the binary.

The launchers run on tensors of the meta device, which have shapes and strides but no memory; every kernel launch is
recorded instead of run, and compiled for a chip with the constants, warps and stages that the launcher chose.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from plr_kernels.triton_shared import launch

# What a launch may have of programs along x, y and z.
LARGEST_GRID = (2**31 - 1, 65535, 65535)
# Compute capability -> shared memory that a block may use.
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
LAUNCH_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "debug", "sanitize_overflow")
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}


@dataclass(frozen=True)
class Launch:
    """One recorded call of a kernel."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Binary:
    """What the compiler reports of a kernel."""

    name: str
    registers: int
    stack: int  # bytes per thread: spilled registers, and nothing else in these kernels
    shared: int
    has_matrix_instructions: bool
    fuses_multiply_adds: bool  # of float32, as products without matrix instructions do too
    approximates_quotients: bool  # of float32, by up to two units of rounding
    narrow_strides: tuple[str, ...]  # products with a stride that are held in 32 bits
    assertions: tuple[str, ...]  # messages of what it checks when it runs


@contextmanager
def recorded_launches(capability: int):
    """A list to which every launch is added instead of being run, as on a chip of that capability."""
    launches: list[Launch] = []

    def record(kernel, *arguments, grid, warmup, **named):
        del warmup
        options = {name: named.pop(name) for name in LAUNCH_OPTIONS if name in named}
        launches.append(Launch(kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | named, options, grid))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(launch, "shared_memory", return_value=SHARED_MEMORY[capability]),
    ):
        yield launches


def _describe(value: Any, path: tuple[int, ...], constants: dict, attributes: dict, specialize: bool) -> Any:
    """The type of an argument as the compiler wants it; constants and alignments are added to the dictionaries."""
    if isinstance(value, tuple):
        kinds = [_describe(entry, (*path, i), constants, attributes, specialize) for i, entry in enumerate(value)]
        return type(value)(*kinds) if hasattr(value, "_fields") else tuple(kinds)
    if isinstance(value, torch.Tensor):
        if specialize:
            attributes[path] = [["tt.divisibility", 16]]
        return "*" + _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value is None or isinstance(value, bool | str) or (value == 1 and specialize):
        constants[path] = value
        return "constexpr"
    if value % 16 == 0 and specialize:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_launch(call: Launch, capability: int) -> Binary:
    """The binary of a recorded launch."""
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(call.kernel.params):
        name, value = parameter.name, call.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[name], constants[(position,)] = "constexpr", value
        else:
            specialize = not parameter.do_not_specialize
            signature[name] = _describe(value, (position,), constants, attributes, specialize)
    source = ASTSource(call.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=call.options)
    registers, stack = _resources(compiled.asm["cubin"])
    matrix = re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", compiled.asm["ptx"])
    narrow = _narrow_strides(compiled.asm["ttir"], signature)
    fuses = "fma.rn.f32" in compiled.asm["ptx"]
    approximates = re.search(r"\bdiv\.(full|approx)", compiled.asm["ptx"]) is not None
    assertions = tuple(re.findall(r'tt\.assert [^"]*"([^"]*)"', compiled.asm["ttir"]))
    shared = compiled.metadata.shared
    products = matrix is not None
    return Binary(call.kernel.__name__, registers, stack, shared, products, fuses, approximates, narrow, assertions)


def _leaves(name: str, kind: Any) -> list[str]:
    """A name, `states.strides` for example, for every argument of the compiled kernel that one of the source became."""
    if isinstance(kind, tuple):
        names = [f"{name}.{field}" for field in kind._fields] if hasattr(kind, "_fields") else [name] * len(kind)
        return [leaf for entry_name, entry in zip(names, kind, strict=True) for leaf in _leaves(entry_name, entry)]
    return [] if kind == "constexpr" else [name]


def _narrow_strides(code: str, signature: dict[str, Any]) -> tuple[str, ...]:
    """Instructions that multiply a stride in 32 bits, which those of a large tensor exceed."""
    header = next(line for line in code.splitlines() if "tt.func public" in line)
    arguments = re.findall(r"(%[\w.]+):", header)
    names = [leaf for name, kind in signature.items() for leaf in _leaves(name, kind)]
    strides = {
        argument for argument, name in zip(arguments, names, strict=True) if name.endswith(("stride", "strides"))
    }
    narrow = []
    for line in code.splitlines():
        result, *operands = re.findall(r"%[\w.#]+", line.partition(" loc(")[0]) or [""]
        if strides.isdisjoint(operands):
            continue
        if "tt.splat" in line and "i32" in line:
            strides.add(result)
        elif "arith.muli" in line and "i32" in line:
            narrow.append(line.strip())
    return tuple(narrow)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread, from the binary itself."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack)
