"""How VESSA repairs students' masks, and whether its own estimates of quality are true.

Axes: H W space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, stats

from acdc import AnnotatedSlice
from baselines import SupervisedUNet
from heart import CLASSES
from vessa_client import SegmentationRequest, UInt8Array
from vessa_client.console import progress_bar
from vessa_server.bank import TemplateBank
from vessa_server.engine import VessaEngine
from vessa_server.training.draws import Draws
from vessa_server.training.noise import smooth_noise

LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9)
TOLERANCE = 0.04
# Bins of incoming Dice for a student's own predictions, and after which updates they are taken.
BINS = ((0.2, 0.4), (0.4, 0.6), (0.6, 0.75), (0.75, 0.85), (0.85, 0.95))
SNAPSHOTS = (100, 200, 300, 400)
TRIES = 60
# Of soft masks: most blur in pixels, and the largest probability.
BLUR, SUREST = 2.0, 0.95


@dataclass(frozen=True)
class StudentMask:
    """A student's label map of a slice."""

    item: AnnotatedSlice
    labels: UInt8Array
    dice: float


def slice_dice(predicted: UInt8Array, truth: UInt8Array, classes: int = len(CLASSES)) -> float:
    """Mean Dice of the structures that are in the truth; NaN where there is none."""
    scores = []
    for value in range(1, classes + 1):
        p, t = predicted == value, truth == value
        if t.any():
            scores.append(2 * (p & t).sum() / (p.sum() + t.sum()))
    return float(np.mean(scores)) if scores else float("nan")


def corrupted(
    items: Sequence[AnnotatedSlice], level: float, seed: int, classes: int = len(CLASSES)
) -> list[StudentMask]:
    """For each slice with a structure a corruption whose Dice is about ``level``.

    Label maps are deformed, shifted, and lose and gain pieces, more and more until the Dice
    fits. A slice for which that does not succeed is left out.
    """
    rng = np.random.default_rng([seed, round(100 * level)])
    found = []
    for item in items:
        if not item.labels.any():
            continue
        low, high = 0.0, 1.0
        for _ in range(TRIES):
            severity = (low + high) / 2
            labels = _corrupt(item.labels, severity, rng, classes)
            dice = slice_dice(labels, item.labels, classes)
            if abs(dice - level) <= TOLERANCE:
                found.append(StudentMask(item, labels, dice))
                break
            # Bisection on a random function: the borders stay open.
            if dice > level:
                low = min(0.95, low + 0.1 * (high - low))
            else:
                high = max(low + 0.02, high - 0.1 * (high - low))
    return found


def softened(labels: UInt8Array, classes: int) -> npt.NDArray[np.float32]:
    """A label map as a student's probabilities, (classes, H, W): unsure near borders.

    All together are at most :data:`SUREST`; far from structures the student is sure of background.
    Thin structures are blurred less, so that they stay.
    """
    soft_CHW = np.zeros((classes, *labels.shape), dtype=np.float32)
    for index in range(classes):
        mask_HW = labels == index + 1
        if mask_HW.any():
            depth = float(ndimage.distance_transform_edt(mask_HW)[mask_HW].mean())
            blur = min(BLUR, depth / 2)
            soft_CHW[index] = ndimage.gaussian_filter(mask_HW.astype(np.float32), blur)
    scaled: npt.NDArray[np.float32] = soft_CHW / np.maximum(soft_CHW.sum(axis=0), 1)
    return np.float32(SUREST) * scaled


def early_predictions(
    bank: TemplateBank, items: Sequence[AnnotatedSlice], *, size: int
) -> list[StudentMask]:
    """Predictions of a U-Net while it learns from the labelled slices."""
    found: list[StudentMask] = []

    def look(student: SupervisedUNet) -> None:
        if student.updates in SNAPSHOTS:
            for item in items:
                labels = student.segment(item.image)
                dice = slice_dice(labels, item.labels)
                if item.labels.any() and labels.any():
                    found.append(StudentMask(item, labels, dice))

    SupervisedUNet(bank, size=size, seed=0).train(updates=SNAPSHOTS[-1], snapshot=look)
    return found


def by_bin(masks: Sequence[StudentMask]) -> dict[str, list[StudentMask]]:
    """Masks in the bins of their Dice."""
    return {
        f"{low}-{high}": [mask for mask in masks if low <= mask.dice < high] for low, high in BINS
    }


def _corrupt(
    labels: UInt8Array, severity: float, rng: np.random.Generator, classes: int
) -> UInt8Array:
    side = max(labels.shape)
    extent = float(np.sqrt((labels > 0).sum()))
    cells = torch.from_numpy(rng.uniform(4, 14, 4))
    draws = Draws(int(rng.integers(2**31)), 0, cells.device)
    smooth = smooth_noise(draws, cells, side, 14).numpy()
    fields = smooth[:, : labels.shape[0], : labels.shape[1]]
    shift = rng.normal(0, 0.12 * severity * extent, 2)
    rows, columns = np.mgrid[: labels.shape[0], : labels.shape[1]]
    amplitude = 0.2 * severity * extent
    at = [rows + shift[0] + amplitude * fields[0], columns + shift[1] + amplitude * fields[1]]
    out: UInt8Array = ndimage.map_coordinates(labels, at, order=0, mode="nearest")
    # Pieces go missing, and islands of a structure appear near the others.
    out = np.where(fields[2] > 3.0 - 2.4 * severity * rng.uniform(), 0, out).astype(np.uint8)
    near = ndimage.binary_dilation(labels > 0, iterations=max(1, round(0.3 * extent)))
    island = near & (fields[3] > 3.0 - 2.2 * severity * rng.uniform()) & (out == 0)
    out[island] = rng.integers(1, classes + 1)
    return out


def repair(engine: VessaEngine, masks: Sequence[StudentMask], top_k: int) -> dict[str, float]:
    """Mean Dice of slices before and after VESSA saw the masks."""
    after = []
    with progress_bar() as progress:
        task = progress.add_task("student masks", total=len(masks), note="")
        for mask in masks:
            item = mask.item
            request = SegmentationRequest(
                image=item.image, volume=item.volume, top_k=top_k, student_mask=mask.labels
            )
            after.append(slice_dice(engine.segment(request).labels, mask.item.labels))
            progress.advance(task)
    before = np.array([mask.dice for mask in masks])
    gain = np.array(after) - before
    return {
        "slices": len(masks),
        "before": float(before.mean()),
        "after": float(np.mean(after)),
        "gain": float(gain.mean()),
        "share_worse": float((gain < -0.01).mean()),
    }


def calibration(
    engine: VessaEngine, items: Sequence[AnnotatedSlice], top_k: int, bins: int = 15
) -> dict[str, float]:
    """Rank correlation of predicted and true IoU, and expected calibration error of pixels."""
    predicted_iou, true_iou = [], []
    confident = np.zeros(bins)
    correct, count = np.zeros(bins), np.zeros(bins)
    for item in items:
        request = SegmentationRequest(image=item.image, volume=item.volume, top_k=top_k)
        result = engine.segment(request)
        for value, found in enumerate(result.classes, start=1):
            p, t = result.labels == value, item.labels == value
            union = (p | t).sum()
            true_iou.append((p & t).sum() / union if union else 1.0)
            predicted_iou.append(found.predicted_iou)
        confidence = result.confidence.astype(np.float64).ravel() / 255
        right = (result.labels == item.labels).ravel()
        which = np.minimum((confidence * bins).astype(np.intp), bins - 1)
        confident += np.bincount(which, confidence, bins)
        correct += np.bincount(which, right, bins)
        count += np.bincount(which, minlength=bins)
    share: npt.NDArray[np.float64] = count / count.sum()
    filled = count > 0
    gap = np.abs(confident[filled] - correct[filled]) / count[filled]
    return {
        "spearman_iou": float(stats.spearmanr(predicted_iou, true_iou).statistic),
        "mean_predicted_iou": float(np.mean(predicted_iou)),
        "mean_true_iou": float(np.mean(true_iou)),
        "expected_calibration_error": float((gap * share[filled]).sum()),
    }
