"""What is committed is what the .proto files say, and they keep to the rules of the field."""

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
SOURCE = PROTOS / "ddm_fed" / "exchange" / "v1" / "exchange.proto"
GENERATED = ROOT / "ddm_fed" / "exchange" / "v1"
TOOLS = "1.76.0"


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The descriptor of our one file, comments included."""
    out = tmp_path_factory.mktemp("descriptor") / "set"
    arguments = [f"-I{PROTOS}", f"--descriptor_set_out={out}", "--include_source_info", str(SOURCE)]
    assert protoc.main(["protoc", *arguments]) == 0
    (found,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return found


def test_generated_code_is_what_the_sources_say_byte_for_byte(tmp_path):
    assert version("grpcio-tools") == TOOLS
    spec = importlib.util.spec_from_file_location("generate", PROTOS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.py*")}
    kept = {
        path.relative_to(ROOT): path.read_bytes()
        for path in GENERATED.glob("exchange_pb2*")
        if path.suffix in (".py", ".pyi")
    }
    assert made == kept


def test_package_is_the_folder_and_has_a_version(described):
    assert described.package == ".".join(SOURCE.relative_to(PROTOS).parent.parts)
    assert re.search(r"\.v\d+$", described.package)


def test_services_are_called_so_and_every_call_has_messages_of_its_own(described):
    used = []
    for service in described.service:
        assert service.name.endswith("Service")
        for call in service.method:
            names = [kind.rpartition(".")[2] for kind in (call.input_type, call.output_type)]
            assert names == [f"{call.name}Request", f"{call.name}Response"]
            used += names
    assert len(set(used)) == len(used)


def test_fields_and_values_are_named_as_the_style_guide_says(described):
    for message in described.message_type:
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", field.name) for field in message.field)
    for enum in described.enum_type:
        prefix = re.sub(r"(?<!^)([A-Z])", r"_\1", enum.name).upper()
        assert enum.value[0].name == f"{prefix}_UNSPECIFIED"
        assert enum.value[0].number == 0
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value)


def test_field_numbers_have_no_gap_that_is_not_reserved(described):
    for message in described.message_type:
        gone = {n for part in message.reserved_range for n in range(part.start, part.end)}
        numbers = {field.number for field in message.field} | gone
        assert numbers == set(range(1, len(numbers) + 1))


def test_everything_has_a_comment(described):
    commented = {
        tuple(place.path)
        for place in described.source_code_info.location
        if place.leading_comments.strip()
    }
    wanted = [(6, s) for s in range(len(described.service))]
    wanted += [
        (6, s, 2, m)
        for s, service in enumerate(described.service)
        for m in range(len(service.method))
    ]
    for kind, part, things in ((4, 2, described.message_type), (5, 2, described.enum_type)):
        for index, thing in enumerate(things):
            inner = thing.field if kind == 4 else thing.value
            wanted += [(kind, index), *((kind, index, part, i) for i in range(len(inner)))]
    assert [path for path in wanted if path not in commented] == []
