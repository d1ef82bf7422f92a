"""Dataclasses from JSON values, checked against the annotations of their fields; and values for JSON."""

import contextlib
import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def decode(kind: Any, value: Any, key: str = "") -> Any:
    """
    A value of the annotated type from what the json module read.

    :param kind: a dataclass, tuple[T, ...], tuple[T, U], dict[str, T], a union, Any, str, int, float or bool. A field
        that may be None is left out of the JSON where it is None. A float that is null is NaN.
    :param key: where the value was, for the message.
    :raises ValueError: with the name of the first key that is missing, unknown or of another type.
    """
    arguments = get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, key)
    if get_origin(kind) in (Union, UnionType):
        *others, last = (option for option in arguments if option is not NoneType)
        for option in others:
            with contextlib.suppress(ValueError):
                return decode(option, value, key)
        return decode(last, value, key)
    if get_origin(kind) is tuple:
        _check(isinstance(value, list), key, "a list", value)
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        _check(len(kinds) == len(value), key, f"{len(kinds)} values", value)
        return tuple(decode(k, v, f"{key}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if get_origin(kind) is dict:
        _check(isinstance(value, dict), key, "an object", value)
        return {name: decode(arguments[1], v, _join(key, name)) for name, v in value.items()}
    if kind is float and value is None:
        return math.nan
    fits = isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    _check(fits, key, f"a value of type {kind.__name__}", value)
    return value


def without_nan(value: Any) -> Any:
    """A value of dicts, lists, tuples and scalars with null for NaN, which JSON doesn't have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _decode_dataclass(kind: Any, value: Any, key: str) -> Any:
    _check(isinstance(value, dict), key, "an object", value)
    hints = get_type_hints(kind)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for name in required:
        if name not in value:
            raise ValueError(f"the key {_join(key, name)} is missing")
    for name in value:
        if name not in hints:
            raise ValueError(f"the key {_join(key, name)} is unknown")
    return kind(**{name: decode(hints[name], v, _join(key, name)) for name, v in value.items()})


def _check(fits: bool, key: str, expected: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{key or 'the file'} holds {str(value)[:40]!r}, expected {expected}")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
