"""Protocol buffers without a schema: the numbered fields of a message, and the features of a tf.train.Example."""

from collections.abc import Iterator
from typing import Any


def parse_example(data: bytes) -> dict[str, list]:
    """The bytes and integer features of a serialised tf.train.Example (floats are left out)."""
    features = {}
    for _, entries in fields(data):  # Example.features
        for _, entry in fields(entries):  # Features.feature: a map, so (1, key) and (2, value)
            pair = dict(fields(entry))
            for kind, values in fields(pair[2]):
                if kind == 1:  # BytesList
                    features[pair[1].decode()] = [value for _, value in fields(values)]
                elif kind == 3:  # Int64List, packed or not
                    found = [
                        [v] if isinstance(v, int) else list(_varints(v)) for _, v in fields(values)
                    ]
                    features[pair[1].decode()] = [number for numbers in found for number in numbers]
    return features


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: integers for varints, bytes for the rest."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        value, position = _varint(data, position) if tag & 7 in (0, 2) else (0, position)
        if tag & 7 == 2:
            value, position = data[position : position + value], position + value
        elif tag & 7 in (1, 5):
            width = 8 if tag & 7 == 1 else 4
            value = data[position : position + width]
            position = position + width
        yield tag >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value = value | (byte & 127) << shift
        shift = shift + 7
        position = position + 1
        if byte < 128:
            return value, position


def signed(value: int) -> int:
    """An int32 of a varint, which holds negative numbers as unsigned 64-bit ones."""
    return value - (1 << 64) if value >> 63 else value


def _varints(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value
