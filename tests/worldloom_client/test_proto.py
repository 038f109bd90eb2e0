"""The compiled description that the client ships is that of the source."""

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from worldloom_client.wire import PACKAGE, POOL, SOURCES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "proto/worldloom/gateway/v1/gateway.proto"


def described() -> descriptor_pb2.FileDescriptorProto:
    data = resources.files("worldloom_client").joinpath("gateway.binpb").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(data).file
    return next(file for file in files if file.package == PACKAGE)


def test_the_description_is_what_the_compiler_makes_of_the_source(tmp_path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    target = tmp_path / "gateway.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
    command += [f"--descriptor_set_out={target}", "--include_imports", str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    assert next(file for file in files if file.package == PACKAGE) == described()


def test_every_field_of_the_source_is_in_the_description_with_its_number() -> None:
    text = re.sub(r"//[^\n]*", "", SOURCE.read_text())
    found = {}
    for name, body in re.findall(r"message (\w+) \{(.*?)\n?\}", text, re.DOTALL):
        body = re.sub(r"oneof \w+ \{", "", body)
        found[name] = {field: int(number) for field, number in re.findall(r"(\w+) = (\d+);", body)}
    expected = {
        message.name: {field.name: field.number for field in message.field}
        for message in described().message_type
    }
    for name, fields in expected.items():
        ours = {f: n for f, n in fields.items() if f in found[name]}
        assert ours == found[name], name
        assert fields == found[name] or name == "ActStreamResponse", name
    assert found.keys() == expected.keys()


def test_sources_are_those_of_the_proto() -> None:
    values = POOL.FindEnumTypeByName(f"{PACKAGE}.Source").values_by_name
    assert {
        name.removeprefix("SOURCE_").lower(): value.number
        for name, value in values.items()
        if value.number
    } == SOURCES
