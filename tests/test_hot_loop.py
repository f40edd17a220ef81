"""The hot loop of every GEMM micro-kernel keeps its accumulators in registers: no stack operand in its machine code.

One spilled accumulator costs a store and a load for each multiply-add, which no correctness test would notice.
"""

import os
import platform
import re
import shutil
import subprocess
from functools import cache
from typing import NamedTuple

import pytest

from fastconv import _kernels

VECTOR_BYTES = {"generic": 16, "avx2": 32, "avx512": 64}
REAL_BYTES = {"f32": 4, "f64": 8}
STEPS = {"generic": 1, "avx2": 2, "avx512": 2}  # of k at a time

NAME = r"fc_(f32|f64)_gemm(?!_panels|_few)\w*?_(\d+)x(\d+)\w*?__(\w+)[\w.]*"  # _panels calls gemm, _few has C in L1
FUNCTION = re.compile(rf"^[0-9a-f]+ <_?({NAME})>:\n((?:.+\n?)*)", re.MULTILINE)
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(.+)$", re.MULTILINE)
JUMP = re.compile(r"j\w+\s+([0-9a-f]+)\b")
MULTIPLY = re.compile(r"vfn?madd\d+p[sd]\b|v?mulp[sd]\b")  # generic x86 has no fused form: mulps, then addps


class Kernel(NamedTuple):
    """A micro-kernel as disassembled: ``(address, instruction)`` pairs."""

    name: str
    real: str
    isa: str
    tile: int  # multiply-adds of the hot loop: mr x nr, in vectors, at each step of k
    code: list[tuple[int, str]]

    def hot_loops(self):
        """The spans of backward jumps that hold a full tile of multiply-adds, little else and no loop inside them."""
        jumps = [(int(match[1], 16), at) for at, text in self.code if (match := JUMP.match(text))]
        loops = [(to, at) for to, at in jumps if self.code[0][0] <= to < at and self.multiplies(to, at)]
        inner = [a for a in loops if not any(a[0] <= b[0] and b[1] <= a[1] and a != b for b in loops)]
        spans = [
            [text for at, text in self.code if to <= at <= end]
            for to, end in inner
            if self.multiplies(to, end) >= self.tile
        ]
        return [span for span in spans if len(span) <= 6 * self.tile]  # longer ones enclose tails out of line

    def multiplies(self, start, end):
        return sum(start <= at <= end and bool(MULTIPLY.match(text)) for at, text in self.code)

    def stack_operand(self):
        """Matches a reference to the stack; without a frame pointer rbp is a register like any other."""
        has_frame = any(re.match(r"mov\s+%rsp,%rbp", text) for _, text in self.code)
        return re.compile(r"push|pop|call|.*\(%r[sb]p" if has_frame else r"push|pop|call|.*\(%rsp")


@cache
def kernels():
    """Every GEMM micro-kernel in the extension."""
    if platform.machine() not in ("x86_64", "AMD64") or not shutil.which("objdump"):
        # In CI a check that cannot run has failed.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs objdump and an x86-64 extension")
    command = ["objdump", "--disassemble", "--no-show-raw-insn", _kernels.__file__]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [
        Kernel(
            name,
            real,
            isa,
            STEPS[isa] * int(mr) * -(-int(nr) * REAL_BYTES[real] // VECTOR_BYTES[isa]),
            [(int(at, 16), text) for at, text in INSTRUCTION.findall(body)],
        )
        for name, real, mr, nr, isa, body in FUNCTION.findall(listing)
        if not name.endswith(".cold")
    ]


@pytest.mark.parametrize("real", REAL_BYTES)
@pytest.mark.parametrize("isa", VECTOR_BYTES)
def test_hot_loop_has_no_stack_reference(isa, real):
    chosen = [kernel for kernel in kernels() if (kernel.isa, kernel.real) == (isa, real)]
    assert chosen, f"no symbol fc_{real}_gemm_<mr>x<nr>__{isa}: is the extension stripped?"
    for kernel in chosen:
        loops = kernel.hot_loops()
        assert loops, f"{kernel.name} has no loop of {kernel.tile} multiply-adds"
        spilled = [text for loop in loops for text in loop if kernel.stack_operand().match(text)]
        assert not spilled, f"{kernel.name}: {spilled}"
