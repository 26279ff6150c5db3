"""The kinds of values that the config's models are made of: values.py's readers, as pydantic sees them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema

from kernelbridge import values


def as_tuple(value: object) -> object:
    """TOML has lists, frozen models have tuples."""
    return tuple(value) if isinstance(value, list) else value


Size = Annotated[
    int,
    PlainValidator(values.parse_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": values.SIZE_PATTERN}]}),
]
Duration = Annotated[
    float,
    PlainValidator(values.parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": values.DURATION_PATTERN}]}
    ),
]
Gpus = Annotated[
    int | Literal["all"] | tuple[str, ...],
    PlainValidator(values.parse_gpus),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"const": "all"},
                {"type": "array", "items": {"type": "string", "pattern": values.GPU_ID_PATTERN}, "minItems": 1},
            ]
        }
    ),
]
Ulimit = Annotated[
    tuple[int, int],
    PlainValidator(values.parse_ulimit),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": -1}, {"type": "string"}]}),
]
Variable = Annotated[str, AfterValidator(values.check_variable)]
SlurmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,-]*$")]
Words = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Variables = Annotated[tuple[Variable, ...], BeforeValidator(as_tuple)]
