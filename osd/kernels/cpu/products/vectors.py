"""Vector instructions generated as LLVM code, since numba has no functions for them.

Addresses are integers; vectors hold sixteen float32, or as many steps (see `osd.kernels.cpu.products.tiling`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import config
from numba.core import cgutils

_config: Any = config


def compiled_for(cpu_name: str | None, cpu_features: str | None) -> dict[str, bool]:
    """The instruction sets that numba compiles for: this processor's, unless numba is set to another.

    Args:
        cpu_name: `NUMBA_CPU_NAME`. Only LLVM knows what a named processor has, so no instruction set is assumed.
        cpu_features: `NUMBA_CPU_FEATURES`, such as `+avx2,-avx512f`.
    """
    if cpu_features is not None:
        return {one[1:]: one[0] == "+" for one in cpu_features.replace(" ", "").split(",") if one}
    return dict(binding.get_host_cpu_features()) if cpu_name is None else {}


FEATURES = compiled_for(_config.CPU_NAME, _config.CPU_FEATURES)
VECTOR_BYTES = 64
INT32, INT64, FLOAT, HALF = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.HalfType()
INTS, FLOATS, HALVES = (ir.VectorType(kind, 16) for kind in (INT32, FLOAT, HALF))
SHORTS, _SIXTEEN_SHORTS = (ir.VectorType(ir.IntType(16), number) for number in (32, 16))
_SIXTEENS = ir.Constant(INTS, [16] * 16)


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite is untyped, and does not know this type
    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_PAIRS, _BFLOATS = ir.VectorType(_BFloat(), 32), ir.VectorType(_BFloat(), 16)


class Code:
    """Generates instructions at the builder's position."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def plus(self, address: Any, number: Any, size: int = 1) -> Any:
        """The address `address + number * size`; the number is a constant or a value."""
        if isinstance(number, int):
            return self.builder.add(address, ir.Constant(INT64, number * size))
        return self.builder.add(address, self.builder.mul(number, ir.Constant(INT64, size)))

    def load(self, address: Any, kind: Any) -> Any:
        """Load a value of LLVM type `kind`."""
        loaded = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        loaded.align = 2 if kind in (HALVES, SHORTS) else 4
        return loaded

    def store(self, vector: Any, address: Any) -> None:
        """Store a vector of floats."""
        self.builder.store(vector, self.builder.inttoptr(address, FLOATS.as_pointer())).align = 4

    def load_numbers(self, address: Any, bits: int) -> Any:
        """Load sixteen numbers of `bits` bits as floats."""
        if bits == 32:
            return self.load(address, FLOATS)
        loaded = self.builder.load(self.builder.inttoptr(address, _SIXTEEN_SHORTS.as_pointer()))
        loaded.align = 2
        upper = self.builder.shl(self.builder.zext(loaded, INTS), _SIXTEENS)
        return self.builder.bitcast(upper, FLOATS)

    def store_numbers(self, vector: Any, address: Any, bits: int) -> None:
        """Store sixteen floats as numbers of `bits` bits: to nearest, ties to even."""
        if bits == 32:
            self.store(vector, address)
            return
        numbers = self.rounded(vector, by_instruction=bool(FEATURES.get("avx512bf16")))
        self.builder.store(numbers, self.builder.inttoptr(address, numbers.type.as_pointer())).align = 2

    def rounded(self, vector: Any, *, by_instruction: bool) -> Any:
        """Round to bfloat16. Integer operations replace a missing instruction, for which LLVM would call a library."""
        if by_instruction:
            return self.builder.fptrunc(vector, _BFLOATS)
        builder, bits = self.builder, self.builder.bitcast(vector, INTS)
        is_odd = builder.and_(builder.lshr(bits, _SIXTEENS), ir.Constant(INTS, [1] * 16))
        bits = builder.add(builder.add(bits, ir.Constant(INTS, [0x7FFF] * 16)), is_odd)
        return builder.trunc(builder.lshr(bits, _SIXTEENS), _SIXTEEN_SHORTS)

    def repeated(self, number: Any, kind: Any) -> Any:
        """One number in all sixteen lanes."""
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(INTS, [0] * 16))

    def variables(self, rows: int, columns: int) -> list[list[Any]]:
        """Vectors of floats that loops modify; the compiler keeps them in registers."""
        return [[cgutils.alloca_once(self.builder, FLOATS) for _ in range(columns)] for _ in range(rows)]

    def loaded(self, places: list[list[Any]]) -> list[list[Any]]:
        """Variables initialised with the vectors at these addresses."""
        variables = self.variables(len(places), len(places[0]))
        for row, row_places in zip(variables, places, strict=True):
            for variable, place in zip(row, row_places, strict=True):
                self.builder.store(self.load(place, FLOATS), variable)
        return variables

    def stored(self, variables: list[list[Any]], places: list[list[Any]]) -> None:
        """Store the variables at these addresses."""
        for row, row_places in zip(variables, places, strict=True):
            for variable, place in zip(row, row_places, strict=True):
                self.store(self.builder.load(variable), place)

    def widened(self, address: Any) -> Any:
        """Widen 32 bfloat16 to float32 on the stack; returns their address there."""
        room = self.builder.ptrtoint(cgutils.alloca_once(self.builder, ir.ArrayType(FLOATS, 2)), INT64)
        for number in range(2):
            self.store(self.load_numbers(self.plus(address, number, 32), 16), self.plus(room, number, VECTOR_BYTES))
        return room

    def prefetch(self, address: Any, num_bytes: int) -> None:
        """Prefetch into the L2 cache; this never waits and never faults."""
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        how = [ir.Constant(INT32, number) for number in (0, 2, 1)]  # for reading, into L2, data
        for start in range(0, num_bytes, VECTOR_BYTES):
            self.builder.call(function, [self.builder.inttoptr(self.plus(address, start), pointer), *how])

    def add_product(self, left: Any, right: Any, sums: Any) -> Any:
        """`left * right + sums` of floats, rounded once."""
        return self._call("llvm.fma.v16f32", [FLOATS] * 3, [left, right, sums])

    def at_least(self, floats: Any, least: Any) -> Any:
        """The element-wise maximum."""
        return self.builder.select(self.builder.fcmp_ordered(">", floats, least), floats, least)

    def at_most(self, floats: Any, most: Any) -> Any:
        """The element-wise minimum."""
        return self.builder.select(self.builder.fcmp_ordered("<", floats, most), floats, most)

    def floor(self, floats: Any) -> Any:
        """Round down to integers."""
        return self._call("llvm.floor.v16f32", [FLOATS], [floats])

    def dot_floats(self, left: Any, right: Any, sums: Any) -> Any:
        """For steps of one float32: add the products to the sums."""
        return self.add_product(self.as_floats(left), self.as_floats(right), sums)

    def dot_pairs(self, left: Any, right: Any, sums: Any, *, by_instruction: bool) -> Any:
        """For steps of two bfloat16: add both products to the sums; without the instruction, the first one first."""
        if by_instruction:
            pairs = [self.builder.bitcast(one, _PAIRS) for one in (left, right)]
            return self._call("llvm.x86.avx512bf16.dpbf16ps.512", [FLOATS, _PAIRS, _PAIRS], [sums, *pairs])
        sums = self.add_product(self.first_of(left), self.first_of(right), sums)
        return self.add_product(self.second_of(left), self.second_of(right), sums)

    def as_floats(self, numbers: Any) -> Any:
        """Lanes of four bytes, read as float32."""
        return self.builder.bitcast(numbers, FLOATS)

    def first_of(self, pairs: Any) -> Any:
        """The first bfloat16 of each pair, as floats."""
        return self.as_floats(self.builder.shl(pairs, _SIXTEENS))

    def second_of(self, pairs: Any) -> Any:
        """The second bfloat16 of each pair, as floats."""
        return self.as_floats(self.builder.and_(pairs, ir.Constant(INTS, [-65536] * 16)))

    def _call(self, name: str, kinds: list[Any], args: list[Any]) -> Any:
        kind = ir.FunctionType(FLOATS, kinds)
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)


def for_each_number_of_rows(builder: Any, num_rows: Any, write: Callable[[Code, int], None], most: int) -> None:
    """Generate separate code for 1 .. `most` rows, since the number of sums in registers must be a constant."""
    for rows in range(1, most + 1):
        with builder.if_then(builder.icmp_signed("==", num_rows, ir.Constant(num_rows.type, rows))):
            write(Code(builder), rows)
