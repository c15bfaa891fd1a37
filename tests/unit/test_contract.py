from __future__ import annotations

import re
import sys
from pathlib import Path

import vessa_client
from support import ROOT

PROTO = ROOT / "proto" / "vessa" / "v1" / "pseudo_label.proto"
GENERATED = ROOT / "proto" / "src" / "vessa" / "v1"


def test_generated_code_is_what_the_contract_generates(tmp_path: Path) -> None:
    from grpc_tools import protoc

    arguments = ["protoc", f"-I{ROOT / 'proto'}", str(PROTO)]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main([*arguments, *outputs]) == 0
    made = sorted(f.name for f in (tmp_path / "vessa" / "v1").iterdir())
    assert made == ["pseudo_label_pb2.py", "pseudo_label_pb2.pyi", "pseudo_label_pb2_grpc.py"]
    for name in made:
        fresh = (tmp_path / "vessa" / "v1" / name).read_text()
        assert fresh == (GENERATED / name).read_text(), f"{name}: run `make proto`"


def test_exported_names_are_those_of_the_docs() -> None:
    text = (ROOT / "docs" / "client.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert documented == set(vessa_client.__all__)


def test_the_client_does_not_load_torch() -> None:
    import subprocess

    code = "import sys, vessa_client, vessa_client.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
