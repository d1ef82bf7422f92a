"""
As many float32 numbers as the machine has in a register, as one value for Numba.

Numba leaves vectors to LLVM's loop vectoriser, which checks at run time whether arrays overlap, reloads its constants
in every iteration and falls back to scalars for what is left over. For the fused engine's loops that is half the speed
(benchmarks/README.md), and a scalar remainder could round differently. :class:`Lanes` is LLVM's own vector type
``<8 x float>``, with AVX-512 ``<16 x float>``; a processor with narrower registers takes two for it. The environment
variable CNN_GP_SIMD_WIDTH (8 or 16) sets the width by hand, for tests and measurements: the numbers that come out are
the same to the bit.

Every operation is the IEEE one, lane by lane; nothing is fused or reordered but where :func:`fma` says so.
"""

import operator
import os
from collections.abc import Callable
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic, lower_builtin, models, register_model, type_callable

from ...errors import UserError


def _width() -> int:
    forced = os.environ.get("CNN_GP_SIMD_WIDTH", "")
    if forced not in ("", "8", "16"):
        raise UserError(f"CNN_GP_SIMD_WIDTH is {forced!r}; expected 8 or 16, or leave it out for the processor's own.")
    return int(forced or (16 if llvm.get_host_cpu_features().get("avx512f") else 8))


#: Numbers in a vector: what one register holds.
WIDTH = _width()

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Lanes{WIDTH}")


LANES = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: types.Type) -> None:
        super().__init__(manager, frontend_type, _VECTOR)


def _splat_value(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(single, ir.Constant(_VECTOR, ir.Undefined), mask)


def _pointer(
    context: Any, builder: ir.IRBuilder, array_type: types.Array, array: ir.Value, index: ir.Value
) -> ir.Value:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _is_float32_vector(array: types.Type) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1 and array.layout == "C"


@intrinsic
def load(typing_context: Any, array: types.Type, index: types.Type) -> Any:
    """The numbers ``array[index : index + WIDTH]`` of a flat float32 array. Nothing is checked."""
    if not (_is_float32_vector(array) and isinstance(index, types.Integer)):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(_pointer(context, builder, signature.args[0], *arguments), align=4)

    return LANES(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: types.Type, index: types.Type, lanes: types.Type) -> Any:
    """``array[index : index + WIDTH] = lanes``. Nothing is checked."""
    if not (_is_float32_vector(array) and isinstance(index, types.Integer) and lanes == LANES):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        array, index, value = arguments
        builder.store(value, _pointer(context, builder, signature.args[0], array, index), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), generate


@intrinsic
def get(typing_context: Any, array: types.Type, index: types.Type) -> Any:
    """``array[index]``, for an index that isn't negative: Numba's own would allow for one from the end."""
    if not (_is_float32_vector(array) and isinstance(index, types.Integer)):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return types.float32(array, types.intp), generate


@intrinsic
def splat(typing_context: Any, scalar: types.Type) -> Any:
    """One float32 number in all lanes."""
    if scalar != types.float32:
        return None
    return LANES(scalar), lambda context, builder, signature, arguments: _splat_value(builder, arguments[0])


def _llvm_function(name: str, n_arguments: int) -> Callable:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * n_arguments), f"llvm.{name}.v{WIDTH}f32"
        )
        return builder.call(function, arguments)

    return generate


@intrinsic
def fma(typing_context: Any, a: types.Type, b: types.Type, c: types.Type) -> Any:
    """a * b + c, rounded once."""
    return LANES(LANES, LANES, LANES), _llvm_function("fma", 3)


@intrinsic
def sqrt(typing_context: Any, a: types.Type) -> Any:
    """The square root, correctly rounded."""
    return LANES(LANES), _llvm_function("sqrt", 1)


@intrinsic
def absolute(typing_context: Any, a: types.Type) -> Any:
    """|a|"""
    return LANES(LANES), _llvm_function("fabs", 1)


@intrinsic
def negative(typing_context: Any, a: types.Type) -> Any:
    """-a"""
    return LANES(LANES), lambda context, builder, signature, arguments: builder.fneg(arguments[0])


def _select(condition: str, swap: bool = False) -> Callable:
    """A selection between the last two arguments by comparing the first two."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        a, b = arguments[:2]
        yes, no = arguments[-2:]
        return builder.select(builder.fcmp_ordered(condition, a, b), yes, no)

    return generate


@intrinsic
def larger(typing_context: Any, a: types.Type, b: types.Type) -> Any:
    """a where a > b, else b: so b where either isn't a number."""
    return LANES(LANES, LANES), _select(">")


@intrinsic
def smaller(typing_context: Any, a: types.Type, b: types.Type) -> Any:
    """a where a < b, else b: so b where either isn't a number."""
    return LANES(LANES, LANES), _select("<")


@intrinsic
def where_less(typing_context: Any, a: types.Type, b: types.Type, yes: types.Type, no: types.Type) -> Any:
    """``yes`` where a < b, else ``no``."""
    return LANES(LANES, LANES, LANES, LANES), _select("<")


@intrinsic
def where_equal(
    typing_context: Any, a: types.Type, b: types.Type, c: types.Type, yes: types.Type, no: types.Type
) -> Any:
    """``yes`` where all of a, b and c are equal, else ``no``."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        a, b, c, yes, no = arguments
        both = builder.and_(builder.fcmp_ordered("==", a, b), builder.fcmp_ordered("==", a, c))
        return builder.select(both, yes, no)

    return LANES(LANES, LANES, LANES, LANES, LANES), generate


def _define_operator(function: Callable, instruction: str) -> None:
    @type_callable(function)
    def typed(context: Any) -> Callable:
        return lambda a, b: LANES if a == LANES and b == LANES else None

    @lower_builtin(function, LANES, LANES)
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return getattr(builder, instruction)(*arguments)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_operator(_function, _instruction)
