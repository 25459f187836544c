"""The wire is frozen: generated code is fresh, and no field number changes its meaning."""

from __future__ import annotations

import subprocess
import sys

from google.protobuf import descriptor_pb2
from raftstorage.proto import generate


def fields(descriptor: bytes) -> dict[str, tuple[object, ...]]:
    """Every field, enum value and method of a serialized FileDescriptorSet: full name -> its shape."""
    found: dict[str, tuple[object, ...]] = {}

    def enter_enum(prefix: str, enum: descriptor_pb2.EnumDescriptorProto) -> None:
        for value in enum.value:
            found[f"{prefix}.{enum.name}.{value.name}"] = (value.number,)

    def enter_message(prefix: str, message: descriptor_pb2.DescriptorProto) -> None:
        name = f"{prefix}.{message.name}"
        for each in message.field:
            found[f"{name}.{each.name}"] = (each.number, each.type, each.label, each.type_name)
        for nested in message.nested_type:
            enter_message(name, nested)
        for enum in message.enum_type:
            enter_enum(name, enum)

    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor).file:
        for message in file.message_type:
            enter_message(file.package, message)
        for enum in file.enum_type:
            enter_enum(file.package, enum)
        for service in file.service:
            for method in service.method:
                found[f"{file.package}.{service.name}.{method.name}"] = (
                    method.input_type,
                    method.output_type,
                )
    return found


def broken(frozen: bytes, current: bytes) -> list[str]:
    """Names in `frozen` that are gone or mean something else in `current`."""
    now = fields(current)
    return sorted(name for name, shape in fields(frozen).items() if now.get(name) != shape)


def test_generated_code_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raftstorage.proto.generate", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_frozen_field_changed() -> None:
    assert broken(generate.FROZEN.read_bytes(), generate.descriptor()) == []


def test_the_check_notices_a_renumbered_field() -> None:
    frozen = generate.FROZEN.read_bytes()
    changed = descriptor_pb2.FileDescriptorSet.FromString(frozen)
    changed.file[0].message_type[0].field[0].number = 99
    assert broken(frozen, changed.SerializeToString()) != []
