from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import vessa_client
from support import ROOT
from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import (
    Box,
    ClassDefinition,
    ClassResult,
    InvalidRequestError,
    Point,
    Region,
    SegmentationRequest,
    SegmentationResult,
    ServerInfo,
    ServerLimits,
    TemplateUse,
    VolumeReference,
    VolumeRequest,
    convert,
)

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
    text = (ROOT / "docs" / "api.md").read_text()
    documented = re.findall(r"^::: vessa_client\.(\w+)$", text, re.MULTILINE)
    assert sorted(documented) == sorted(vessa_client.__all__)


def test_names_are_imported_when_they_are_used() -> None:
    for name in vessa_client.__all__:
        assert getattr(vessa_client, name) is not None
    assert set(dir(vessa_client)) >= set(vessa_client.__all__)
    with pytest.raises(AttributeError, match="Segmentor"):
        vessa_client.Segmentor  # type: ignore[attr-defined]  # noqa: B018


def modules_after(code: str) -> set[str]:
    """Packages that are imported after some code has run in a new process."""
    program = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments", [[], ["segment"], ["label"], ["templates", "add"], ["info"], ["health"]]
)
def test_help_imports_nothing_that_only_the_work_needs(arguments: list[str]) -> None:
    help_ = [*arguments, "--help"]
    code = f"from vessa_client.cli import app\napp({help_}, standalone_mode=False)"
    needless = {"grpc", "google", "numpy", "scipy", "nibabel", "PIL", "asyncio"}
    assert not modules_after(code) & needless


@pytest.mark.parametrize("package", ["vessa-client", "vessa-server", "ssl-trainer"])
def test_commands_say_their_version(package: str) -> None:
    app = importlib.import_module(f"{package.replace('-', '_')}.cli").app
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output.split() == [package, importlib.metadata.version(package)]
    assert CliRunner().invoke(app, ["-h"]).exit_code == 0


def test_the_client_does_not_load_torch() -> None:
    modules = ("cli", "labelling", "_sync", "_async")
    code = "\n".join(f"import vessa_client.{name}" for name in modules)
    loaded = modules_after(code)
    assert {"grpc", "nibabel"} <= loaded
    assert "torch" not in loaded


def test_every_field_of_a_request_comes_back() -> None:
    request = SegmentationRequest(
        image=b"png",
        class_names=("disc", "bar"),
        text="words",
        volume=(b"one", b"two"),
        volume_ref=VolumeReference("a" * 64),
        region=Region(top=1, left=0, height=3, width=4, quarter_turns=2),
        points=(Point(row=3, column=0, class_name="disc"), Point(row=0, column=2)),
        boxes=(Box(top=1, left=0, height=3, width=4, class_name="bar"),),
        top_k=3,
        template_ids=("t",),
        return_probabilities=True,
        explain=True,
        bank="cardiac",
        policy_off=("rule one", "rule two"),
        priority="bulk",
        request_id="7",
    )
    message = convert.request_to_message(request)
    assert convert.request_from_message(message) == request
    unset = SegmentationRequest(image=b"png")
    assert convert.request_from_message(convert.request_to_message(unset)) == unset


@pytest.mark.parametrize("reference", [None, VolumeReference("a" * 64)])
def test_a_volume_comes_back_header_first(reference: VolumeReference | None) -> None:
    mask = np.array([[0, 2, 1]], np.uint8)
    request = VolumeRequest(
        slices=(b"one", b"two"),
        class_names=("disc", "bar"),
        text="words",
        student_masks={1: mask},
        points={1: (Point(row=3, column=0, class_name="disc"),)},
        boxes={1: (Box(top=1, left=0, height=3, width=4, class_name="bar"),)},
        top_k=3,
        template_ids=("t",),
        return_probabilities=True,
        explain=True,
        bank="cardiac",
        policy_off=("rule",),
        priority="interactive",
        request_id="7",
    )
    header = convert.volume_header_to_message(request, reference)
    assert header.num_slices == 2
    bare = replace(request, slices=(), student_masks={}, points={}, boxes={})
    assert convert.volume_header_from_message(header) == (bare, reference)
    first, second = (convert.volume_slice_to_message(request, i) for i in range(2))
    assert convert.image_from_message(first.image) == b"one"
    assert convert.student_from_message(first.student_mask) is None
    assert second.index == 1
    student = convert.student_from_message(second.student_mask)
    assert student is not None
    assert np.array_equal(student, mask)
    assert convert.marks_from_message(first) == {"points": (), "boxes": ()}
    known = {"points": request.points[1], "boxes": request.boxes[1]}
    assert convert.marks_from_message(second) == known
    assert not convert.volume_slice_to_message(request, 1, image=False).HasField("image")


@pytest.mark.parametrize(("field", "most"), [("points", 256), ("boxes", 32)])
def test_too_many_points_or_boxes_are_refused_before_they_are_read(field: str, most: int) -> None:
    message = pb.SegmentRequest(image=pb.Image(encoded=b"png"))
    for _ in range(most + 1):
        getattr(message, field).add()
    with pytest.raises(InvalidRequestError, match=f"{field}: {most + 1}, expected {most} at most"):
        convert.request_from_message(message)


def test_points_that_the_wire_does_not_carry_are_refused() -> None:
    request = SegmentationRequest(image=b"png", points=(Point(row=-1, column=0),))
    with pytest.raises(InvalidRequestError, match=r"points: .*expected integers of 0 or more"):
        convert.request_to_message(request)


def test_every_field_of_a_result_comes_back() -> None:
    labels = np.array([[0, 1]], np.uint8)
    result = SegmentationResult(
        request_id="7",
        labels=labels,
        confidence=labels + 100,
        classes=(ClassResult(class_name="disc", predicted_iou=0.5, explanation="words"),),
        templates=(TemplateUse(template_id="t", class_name="disc", similarity=0.25),),
        stage_ms={"decode_mask": 1.5},
        model_digest="d",
        bank_version="b",
        image_features_cached=True,
        template_features_cached=False,
        image_sha256="e",
        probabilities=labels[None],
        slice_index=4,
        volume_sha256="f",
        region=Region(top=1, left=2, height=3, width=4, quarter_turns=3),
    )
    back = convert.result_from_message(convert.result_to_message(result))
    for field in fields(result):
        assert np.array_equal(getattr(back, field.name), getattr(result, field.name)), field.name


def test_every_field_of_the_server_information_comes_back() -> None:
    info = ServerInfo(
        version="1",
        model_name="nano",
        model_digest="d",
        model_parameters=5,
        canvas_size=256,
        bank_version="b",
        num_templates=2,
        classes=(ClassDefinition(name="disc", description="Bright."),),
        limits=ServerLimits(
            max_image_bytes=1,
            max_image_side=2,
            max_classes=3,
            max_top_k=4,
            max_stream_in_flight=5,
            max_request_pixels=1 << 40,
        ),
        cache_backend="disk",
        runtime="torch",
        device="cuda:0",
        dtype="bfloat16",
        device_memory_bytes=1 << 36,
        bank="cardiac",
        banks=("cardiac", "brain"),
        policy_version="p1",
        policy_rules=("rule one",),
    )
    assert convert.info_from_message(convert.info_to_message(info)) == info


@pytest.mark.parametrize("change", [{"height": 3, "width": 2}, {"num_classes": 2}])
def test_student_masks_that_do_not_fit_their_image_are_refused(change: dict[str, int]) -> None:
    image = np.zeros((2, 3), np.uint8)
    request = SegmentationRequest(image=image, class_names=("disc",), student_mask=image)
    message = convert.request_to_message(request)
    assert convert.request_from_message(message).student_mask is not None
    for name, value in change.items():
        setattr(message.student_mask.label_map, name, value)
    with pytest.raises(InvalidRequestError) as caught:
        convert.request_from_message(message)
    assert caught.value.field == "student_mask.label_map"


def test_an_unknown_priority_is_refused() -> None:
    message = convert.request_to_message(SegmentationRequest(image=b"png"))
    message.options.priority = 9  # type: ignore[assignment]
    with pytest.raises(InvalidRequestError, match="PRIORITY_BULK") as caught:
        convert.request_from_message(message)
    assert caught.value.field == "options.priority"
    with pytest.raises(InvalidRequestError):
        convert.volume_header_from_message(pb.VolumeHeader(options=message.options))
