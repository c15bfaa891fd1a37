"""Export of a student: ONNX, or a ``torch.export`` program; both checked against the student.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_trainer.data.frame import HIGH_PERCENTILE, LOW_PERCENTILE, MOST_OF_SLICE
from ssl_trainer.evaluation.predictor import LARGEST_COMPONENT, Predictor
from ssl_trainer.regions.find import SLICES
from ssl_trainer.regions.locator import ENOUGH, SIZE

# Largest difference of probabilities that rounding in another runtime may cause.
TOLERANCE = 1e-4
INPUT, OUTPUT = "image", "probabilities"


WHOLE_SQUARE = "Put it in the middle of a square of zeros whose side is the slice's longer one."
REGION_SQUARE = (
    "Take the square that the locator, the file beside this one, finds in the volume, with zeros "
    "beyond the slice, and turn it counter-clockwise by its quarter turns."
)
LOCATOR_INPUT = (
    "Whole slices, in 0..1 by the student's window or, without one, by percentiles of the whole "
    "slice, with zeros in the shorter side, at `size` pixels, `slices` of a volume, evenly spread, "
    "and each turned by 0 to 3 quarters. Channel 0 is the probability of being inside; "
    "turn it back, and take the mean of all. What is at least `enough` of its maximum is the "
    "region: a square of that area (where it touches the slice's border, as long as it is along "
    "that border, if that is more), its centre the mean place, weighted. Channels 1 to 4 are the "
    "probabilities of the quarter turns that are left; the most likely sum of logarithms counts. A "
    "square with `whole_from` of the slice's area or more is that of the whole slice, instead."
)


class ExportError(ValueError):
    """The exported student cannot be made, or does not answer like the student."""


class Deployed(nn.Module):
    """What is exported: canvases in [0, 1] to probabilities."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, C, H, W)."""
        return torch.softmax(self.student(image), dim=1)


class DeployedLocator(nn.Module):
    """What is exported of a locator: whole slices in [0, 1] to where the student is to look."""

    def __init__(self, locator: nn.Module) -> None:
        super().__init__()
        self.locator = locator

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, S, S) to (B, 5, S, S): inside of the region; 0 to 3 quarter turns, all over it."""
        inside, turns = self.locator(image)
        spread = torch.softmax(turns, dim=1)[:, :, None, None].expand(-1, -1, *image.shape[2:])
        return torch.cat([torch.sigmoid(inside), spread], dim=1)


def export(predictor: Predictor, file: Path, classes: Sequence[str]) -> float:
    """Write a student to ``file`` and compare the two on random canvases of two batch sizes.

    What is written runs on CPUs wherever the student is; the student answers where it is. A
    locator is written beside it, as ``NAME.locator.SUFFIX``.

    Args:
        predictor: whose student is exported, in evaluation mode. How it is asked is stored beside
            its weights: what is left to whoever runs the file.
        file: ``.onnx`` or ``.pt2``.
        classes: names of channels 1, 2, ...; stored too.

    Returns:
        The largest difference of probabilities.

    Raises:
        ExportError: of another suffix, a missing package, or answers that differ.
    """
    if file.suffix not in FORMATS:
        raise ExportError(f"--out: {file}, expected a name that ends in {' or '.join(FORMATS)}")
    facts = {
        "classes": list(classes),
        "size": predictor.size,
        **_preparation(predictor),
        "turns": list(predictor.turns),
        "quarters": predictor.quarters,
        LARGEST_COMPONENT: [classes[value - 1] for value in predictor.largest_component],
    }
    difference = _write(Deployed(predictor.student), file, predictor.size, facts)
    if predictor.locator is not None:
        beside = locator_file(file)
        about = {
            "size": SIZE,
            "slices": SLICES,
            "enough": ENOUGH,
            "whole_from": MOST_OF_SLICE,
            "input": LOCATOR_INPUT,
        }
        found = _write(DeployedLocator(predictor.locator), beside, SIZE, about)
        difference = max(difference, found)
    return difference


def locator_file(file: Path) -> Path:
    """Where the locator of an exported student is."""
    return file.with_name(f"{file.stem}.locator{file.suffix}")


def _write(model: nn.Module, file: Path, size: int, facts: dict[str, object]) -> float:
    """Write a model, compare what was written with it, and return the largest difference."""
    model.eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"partial.{file.name}")
    run = FORMATS[file.suffix](copy.deepcopy(model).cpu(), partial, size, facts)
    device, difference = next(model.parameters()).device, 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 3):
        image = torch.rand(batch, 1, size, size, generator=generator)
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected = model(image.to(device)).cpu()
            difference = max(difference, float((run(image) - expected).abs().max()))
    if not difference <= TOLERANCE:
        partial.unlink()
        raise ExportError(
            f"{file}: probabilities differ by {difference:.2g}, expected {TOLERANCE:g} at most"
        )
    partial.replace(file)
    return difference


def _preparation(predictor: Predictor) -> dict[str, object]:
    """How a slice becomes a canvas; in words, too, for whoever finds the file alone."""
    window, regions = predictor.window, predictor.locator is not None
    part = " within the region of interest" if regions else ""
    known = "`window`" if window else f"its own `percentiles`{part}"
    square = REGION_SQUARE if regions else WHOLE_SQUARE
    return {
        "regions": regions,
        "window": None if window is None else list(window),
        "percentiles": [LOW_PERCENTILE, HIGH_PERCENTILE] if window is None else None,
        "axis": predictor.axis,
        "input": (
            "Bring a volume to right, anterior, superior, and take slices along `axis` (0, 1, 2; "
            "null: the one along which it was acquired), with the first of the other two axes "
            f"downwards. Clip a slice to {known} and map that to 0..1. {square} Resample that to "
            "`size` pixels: where that is less than a third, to twice as many by area means first; "
            "then bilinear."
        ),
    }


def _onnx(
    model: nn.Module, file: Path, size: int, facts: dict[str, object]
) -> Callable[[Tensor], Tensor]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ExportError(
            f"ONNX: {error.name} is missing; pip install 'ssl-trainer[onnx]'"
        ) from error
    torch.onnx.export(
        model,
        (_example(size),),
        file,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    stored = onnx.load(file)
    onnx.helper.set_model_props(stored, {"vessa": json.dumps(facts)})
    onnx.save(stored, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])


def _program(
    model: nn.Module, file: Path, size: int, facts: dict[str, object]
) -> Callable[[Tensor], Tensor]:
    program = torch.export.export(
        model, (_example(size),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    with warnings.catch_warnings():
        # Weights may be views of a file. That they are stored whole, the check of answers shows.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        torch.export.save(program, file, extra_files={"vessa.json": json.dumps(facts)})
    loaded: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return loaded


def _example(size: int) -> Tensor:
    # A batch of one would be taken for a constant.
    return torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(1))


FORMATS = {".onnx": _onnx, ".pt2": _program}
