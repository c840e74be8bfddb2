"""Generates `ddm_fed/exchange/v1` from the .proto files here; a test compares what is committed.

    python protos/generate.py

Needs grpcio-tools 1.76.0: code that later ones generate does not load with protobuf 6, which
Flower asks for.
"""

import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent
TOOLS = "1.76.0"


def generate(target: Path) -> None:
    """Writes the generated packages below `target`."""
    if version("grpcio-tools") != TOOLS:
        sys.exit(f"grpcio-tools {version('grpcio-tools')} is installed, {TOOLS} is needed")
    sources = sorted(str(path.relative_to(HERE)) for path in HERE.rglob("*.proto"))
    includes = [f"-I{HERE}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, *sources]):
        sys.exit("protoc failed")


if __name__ == "__main__":
    generate(HERE.parent)
