"""What VESSA is compared with: each sees the labelled slices only.

Axes: H W space.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import SimpleITK as sitk  # noqa: N813
import torch
import torch.nn.functional as F
from torch import Tensor

from acdc import AnnotatedSlice
from annotated_sources import renumber
from heart import CLASSES
from ssl_trainer import models
from ssl_trainer.config import UNetConfig
from ssl_trainer.data import frame
from ssl_trainer.methods.losses import supervised_loss
from ssl_trainer.models import predict_probabilities
from vessa_client import AnyArray, SegmentationRequest, UInt8Array
from vessa_client.console import progress_bar
from vessa_server.bank import TemplateBank
from vessa_server.engine import VessaEngine
from vessa_server.training import pack
from vessa_server.training.adaptation import adaptation_config, bank_pack
from vessa_server.training.episodes import EpisodeGenerator

REGISTRATION_SIZE = 128


def matched_template(engine: VessaEngine, image: AnyArray, names: Sequence[str]) -> AnnotatedSlice:
    """The template that most classes retrieve; its labels are 1, 2, ... for ``names``."""
    result = engine.segment(SegmentationRequest(image=image, top_k=1))
    used = [t.template_id for t in result.templates]
    chosen = max(used, key=used.count)
    info = next(t for t in engine.bank.snapshot().templates if t.template_id == chosen)
    template = engine.bank.load(info)
    labels = renumber(template.labels, info.class_names, names)
    return AnnotatedSlice(chosen, template.image, labels)


def copy_mask(template: AnnotatedSlice, image: AnyArray) -> UInt8Array:
    """The template's labels, scaled to the image's size."""
    labels = torch.from_numpy(template.labels)[None, None].float()
    scaled = F.interpolate(labels, size=image.shape[:2], mode="nearest")
    out: UInt8Array = scaled[0, 0].to(torch.uint8).numpy()
    return out


def register(template: AnnotatedSlice, image: AnyArray) -> UInt8Array:
    """The template's labels after affine and B-spline registration (mutual information).

    Where registration diverges, the labels are copied.
    """
    try:
        return _register(template, image)
    except RuntimeError:
        return copy_mask(template, image)


def _register(template: AnnotatedSlice, image: AnyArray) -> UInt8Array:
    shape = image.shape[:2]
    fixed = _itk(
        frame.resample(_unit(image), frame.theta(shape), REGISTRATION_SIZE, mode="bilinear")
    )
    own = frame.theta(template.labels.shape)
    moving = _itk(frame.resample(_unit(template.image), own, REGISTRATION_SIZE, mode="bilinear"))
    initial = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(2), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    affine = _method()
    affine.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 60)
    affine.SetOptimizerScalesFromPhysicalShift()
    affine.SetShrinkFactorsPerLevel([4, 2])
    affine.SetSmoothingSigmasPerLevel([2, 1])
    affine.SetInitialTransform(initial, inPlace=False)
    found = affine.Execute(fixed, moving)
    mesh = sitk.BSplineTransformInitializer(fixed, [6, 6], order=3)
    spline = _method()
    spline.SetOptimizerAsLBFGSB(numberOfIterations=20)
    spline.SetMovingInitialTransform(found)
    spline.SetInitialTransform(mesh, inPlace=True)
    spline.SetShrinkFactorsPerLevel([2])
    spline.SetSmoothingSigmasPerLevel([1])
    spline.Execute(fixed, moving)
    both = sitk.CompositeTransform([found, mesh])
    labels = torch.from_numpy(template.labels)[None].float()
    small = _itk(frame.resample(labels, own, REGISTRATION_SIZE, mode="nearest"))
    warped = sitk.GetArrayFromImage(sitk.Resample(small, fixed, both, sitk.sitkNearestNeighbor))
    classes = torch.stack([torch.from_numpy(warped == c).float() for c in range(len(CLASSES) + 1)])
    out: UInt8Array = frame.restore(classes, shape).argmax(dim=0).to(torch.uint8).numpy()
    return out


def _unit(image: AnyArray) -> Tensor:
    return frame.to_unit_range(image)


def _itk(map_1HW: Tensor) -> sitk.Image:
    return sitk.GetImageFromArray(map_1HW[0].numpy())


def _method() -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetInterpolator(sitk.sitkLinear)
    return method


class SupervisedUNet:
    """The trainer's student, on the labelled slices alone, with the adaptation's variation."""

    def __init__(self, bank: TemplateBank, *, size: int, seed: int) -> None:
        torch.manual_seed(seed)
        config = dataclasses.replace(
            adaptation_config(1, seed),
            groups=2,
            repeats=1,
            volume_share=0.0,
            zoom_range=(0.65, 1.45),
            view_shares=(0.5, 0.5, 0.0),
        )
        self.generator = EpisodeGenerator(bank_pack(bank, pack.side_for(size)), config, size)
        self.size = size
        self.student = models.build(UNetConfig(), len(CLASSES))
        self.updates = 0

    def train(
        self,
        *,
        seconds: float = math.inf,
        updates: float = math.inf,
        snapshot: Callable[[SupervisedUNet], None] | None = None,
    ) -> None:
        """Train for a time or a number of updates; ``snapshot`` is called after each."""
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=2e-3, weight_decay=1e-2)
        start = time.perf_counter()
        self.student.train()
        with progress_bar() as progress:
            task = progress.add_task("U-Net on the labelled case", total=1.0, note="")
            done = 0.0
            while done < 1:
                for group in optimizer.param_groups:
                    group["lr"] = 2e-3 * (1 - done) ** 0.9
                images, labels = self._batch()
                loss = supervised_loss(self.student(images), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                self.updates += 1
                done = max((time.perf_counter() - start) / seconds, self.updates / updates)
                progress.update(task, completed=done)
                if snapshot is not None:
                    snapshot(self)
                    self.student.train()

    def segment(self, image: AnyArray) -> UInt8Array:
        """Label map, (H, W)."""
        shape = image.shape[:2]
        view = frame.resample(_unit(image), frame.theta(shape), self.size, mode="bilinear")
        probabilities = predict_probabilities(self.student, view[None])[0]
        out: UInt8Array = frame.restore(probabilities, shape).argmax(0).to(torch.uint8).numpy()
        return out

    def _batch(self) -> tuple[Tensor, Tensor]:
        images_N3HW, labels_NHW = self.generator.pictures(self.updates)
        return images_N3HW.mean(dim=1, keepdim=True), labels_NHW
