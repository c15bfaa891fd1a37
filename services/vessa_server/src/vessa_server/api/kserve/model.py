"""The one model that is served, and its tensors, as the Open Inference Protocol names them.

Axes: C classes, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vessa_client import NotFoundError

SERVER: Final = "vessa-server"
MODEL: Final = "vessa"
VERSION: Final = "1"
PLATFORM: Final = "vessa"
# Of Triton's extensions: raw tensors in REST, parameters of ours, `priority` and `timeout`.
EXTENSIONS: Final = ("binary_tensor_data", "parameters", "schedule_policy")
ANY: Final = -1
# Label of the metrics, over gRPC and REST.
TRANSPORT: Final = "kserve"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is taken or given.

    Attributes:
        datatypes: that it may have; metadata can name one, which is the first.
        shape: without a batch axis; -1 for any size.
    """

    name: str
    datatypes: tuple[str, ...]
    shape: tuple[int, ...]


# Either (H, W) or (H, W, 3) pixels.
IMAGE: Final = TensorSpec(
    "image", ("UINT8", "UINT16", "INT16", "INT32", "FP32", "FP64"), (ANY, ANY)
)
# The same as a file, instead.
ENCODED: Final = TensorSpec("encoded", ("BYTES",), (1,))
# Either (H, W) labels or (C, H, W) probabilities; may be left out.
STUDENT_MASK: Final = TensorSpec("student_mask", ("UINT8", "FP32"), (ANY, ANY))
INPUTS: Final = (IMAGE, ENCODED, STUDENT_MASK)

PROBABILITIES: Final = TensorSpec("probabilities", ("UINT8",), (ANY, ANY, ANY))
EXPLANATIONS: Final = TensorSpec("explanations", ("BYTES",), (ANY,))
# Given where a request names none.
DEFAULT_OUTPUTS: Final = (
    TensorSpec("labels", ("UINT8",), (ANY, ANY)),
    TensorSpec("confidence", ("UINT8",), (ANY, ANY)),
    TensorSpec("predicted_iou", ("FP32",), (ANY,)),
    TensorSpec("class_names", ("BYTES",), (ANY,)),
)
OUTPUTS: Final = (*DEFAULT_OUTPUTS, PROBABILITIES, EXPLANATIONS)


def check_model(name: str, version: str = "") -> None:
    """Check that a model is the one that is served; an empty version means the only one.

    Raises:
        NotFoundError: it is not; says what there is.
    """
    if name != MODEL:
        raise NotFoundError(f"model: {name[:80]!r}, expected {MODEL}", field="model")
    if version not in ("", VERSION):
        raise NotFoundError(f"version: {version[:80]!r}, expected {VERSION}", field="version")
