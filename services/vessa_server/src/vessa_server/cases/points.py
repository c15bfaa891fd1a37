"""Points and boxes that a user gives, and an answer that follows them.

A point says which class a pixel is, or that it is background. What that changes spreads over
pixels that look alike, and fades: a random walker with VESSA's probabilities as prior (Grady,
"Multilabel random walker image segmentation using prior models", CVPR 2005). The model is not
asked: its decoder has not learned to follow points. A box says that a class is nowhere outside of
it; where the class wins nowhere inside, its middle is a point. Of what contradicts itself a point
counts more than a box, and of two points at one pixel the last one.

Axes: M background and classes, P planes of the image, H W its pixels, h w cells of the grid, N of
them in all, S of them seeds, U others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import splu

from vessa_client import Box, InvalidRequestError, Point, wire
from vessa_server.cases.frame import Frame
from vessa_server.model.preprocess import Crop
from vessa_server.policy import answers
from vessa_server.policy.answers import Bools, Decision, Floats

# Cells of the grid a side; cells around a point that are as it says.
SIDE, RADIUS = 192, 2
# How much neighbours that differ by the image's deviation are apart, the weight that those at an
# edge keep, and the pull of the prior: chosen on the sources that benchmarks/points.py marks.
CONTRAST, LEAST_WEIGHT, PRIOR = 10.0, 1e-4, 1e-3
TINY, SURE = 1e-6, 20.0

Maps = Callable[[], Iterator[Floats]]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Marks:
    """Points and boxes of a request, checked.

    Attributes:
        points: what a user says of pixels.
        boxes: and of classes.
        names: of the asked classes, in their order.
    """

    points: tuple[Point, ...]
    boxes: tuple[Box, ...]
    names: tuple[str, ...]

    @staticmethod
    def of(
        points: Sequence[Point], boxes: Sequence[Box], names: Sequence[str], shape: tuple[int, int]
    ) -> Marks | None:
        """Those for an image of a height and width; None where there are none.

        Raises:
            InvalidRequestError: one is outside of the image, or of a class that is not asked.
            OverloadedError: they are too many.
        """
        wire.check_marks(len(points), len(boxes))
        height, width = shape
        for point in points:
            if not (0 <= point.row < height and 0 <= point.column < width):
                raise InvalidRequestError(
                    f"points: row {point.row}, column {point.column}, expected them in an image "
                    f"of {height} x {width} pixels",
                    field="points",
                )
            if point.class_name:
                _check_class("points", point.class_name, names)
        for box in boxes:
            if not Crop(box.top, box.left, box.height, box.width).lies_in(height, width):
                raise InvalidRequestError(
                    f"boxes: {box.height} x {box.width} pixels from row {box.top}, column "
                    f"{box.left}, expected them in the image of {height} x {width} pixels",
                    field="boxes",
                )
            _check_class("boxes", box.class_name, names)
        if not points and not boxes:
            return None
        return Marks(tuple(points), tuple(boxes), tuple(names))

    def follow(self, maps: Maps, image_PHW: Floats) -> Maps:
        """Logits of the classes, (H, W) each, after points and boxes."""
        boxed = self._boxed(maps)
        height, width = image_PHW.shape[1:]
        grid = Frame.of(height, width, SIDE)
        logits = np.concatenate([grid.reduce(map_HW[None]) for map_HW in boxed()])
        before_Mhw = answers.with_background(logits)
        points = (*self._middles(before_Mhw, grid), *self.points)  # the last one counts
        if not points:
            return boxed
        change_Mhw = self._change(before_Mhw, points, grid.reduce(image_PHW), grid.step)
        decided = answers.decide(boxed)
        changed = self._boxed(lambda: _changed(decided, boxed, change_Mhw, grid))
        return lambda: self._pinned(changed, points)

    def _boxed(self, maps: Maps) -> Maps:
        """Logits without what lies outside of the boxes of its class."""

        def inside(name: str, map_HW: Floats) -> Floats:
            own = [box for box in self.boxes if box.class_name == name]
            if not own:
                return map_HW
            found_HW = np.full_like(map_HW, -SURE)
            for box in own:
                found_HW[_slices(box)] = map_HW[_slices(box)]
            return found_HW

        return lambda: map(inside, self.names, maps())

    def _middles(self, probability_Mhw: Floats, grid: Frame) -> Iterator[Point]:
        """Of boxes in which their class wins nowhere, and has no point."""
        winner_hw = probability_Mhw.argmax(axis=0)
        for box in self.boxes:
            rows, columns = _slices(box)
            is_pointed_at = any(
                point.class_name == box.class_name
                and rows.start <= point.row < rows.stop
                and columns.start <= point.column < columns.stop
                for point in self.points
            )
            cells = tuple(
                slice(part.start // grid.step, -(-part.stop // grid.step))
                for part in (rows, columns)
            )
            if not (is_pointed_at or (winner_hw[cells] == self._number(box)).any()):
                row, column = box.top + box.height // 2, box.left + box.width // 2
                yield Point(row=row, column=column, class_name=box.class_name)

    def _change(
        self, before_Mhw: Floats, points: Sequence[Point], image_Phw: Floats, step: int
    ) -> Floats:
        """Change of the probabilities on the grid."""
        count, height, width = before_Mhw.shape
        number_hw = np.full((height, width), -1)
        rows, columns = np.ogrid[:height, :width]
        for reach in (RADIUS, 0):  # no point covers the middle of another one
            for point in points:
                down, across = rows - point.row // step, columns - point.column // step
                number_hw[down**2 + across**2 <= reach**2] = self._number(point)
        is_seed_N = number_hw.ravel() >= 0
        told_SM = np.eye(count)[number_hw.ravel()[is_seed_N]]
        before_NM = before_Mhw.reshape(count, -1).T
        change_NM = spread(image_Phw, is_seed_N, told_SM - before_NM[is_seed_N])
        return change_NM.T.reshape(before_Mhw.shape).astype(np.float32)

    def _pinned(self, maps: Maps, points: Sequence[Point]) -> Iterator[Floats]:
        """Logits whose pixels are what points say."""
        for number, map_HW in enumerate(maps(), start=1):
            pinned_HW = map_HW.copy()
            for point in points:
                pinned_HW[point.row, point.column] = SURE * (
                    1 if self._number(point) == number else -1
                )
            yield pinned_HW

    def _number(self, mark: Point | Box) -> int:
        """0 for background, i for the i-th class."""
        return 1 + self.names.index(mark.class_name) if mark.class_name else 0


def _changed(decided: Decision, maps: Maps, change_Mhw: Floats, grid: Frame) -> Iterator[Floats]:
    """Logits after a change of the probabilities on the grid."""

    def after(map_HW: Floats, number: int) -> Floats:
        changed_HW = decided.probability(map_HW)
        changed_HW += grid.enlarge(change_Mhw[number : number + 1])[0]
        logarithm_HW: Floats = np.log(np.clip(changed_HW, TINY, 1))
        return logarithm_HW

    background_HW = after(np.zeros((grid.height, grid.width), dtype=np.float32), 0)
    for number, map_HW in enumerate(maps(), start=1):
        yield after(map_HW, number) - background_HW


def spread(image_Phw: Floats, is_seed_N: Bools, change_SM: Doubles) -> Doubles:
    """What changes elsewhere, (N, M), where seeds change so.

    The minimum of weighted squared differences of neighbours and :data:`PRIOR` times squared
    changes. So nothing changes more than the seeds do, and changes that add up to nothing do so
    everywhere.
    """
    laplacian = _laplacian(image_Phw) + PRIOR * sparse.identity(is_seed_N.size)
    others = laplacian.tocsr()[~is_seed_N]
    change_NM = np.zeros((is_seed_N.size, change_SM.shape[1]))
    change_NM[is_seed_N] = change_SM
    pulled_UM = -(others[:, is_seed_N] @ change_SM)
    change_NM[~is_seed_N] = splu(others[:, ~is_seed_N].tocsc()).solve(pulled_UM)
    return change_NM


def _laplacian(image_Phw: Floats) -> sparse.csr_matrix:
    """Of the grid's four-connected graph, whose weights fall with the contrast of neighbours."""
    image = image_Phw.astype(np.float64)
    variance = image.var(axis=(1, 2)).sum() or 1.0
    index_hw = np.arange(image[0].size).reshape(image.shape[1:])
    firsts, seconds, weights = [], [], []
    for axis in (0, 1):
        contrast = (np.diff(image, axis=1 + axis) ** 2).sum(axis=0) / variance
        weights.append((np.exp(-CONTRAST * contrast) + LEAST_WEIGHT).ravel())
        firsts.append(np.delete(index_hw, -1, axis).ravel())
        seconds.append(np.delete(index_hw, 0, axis).ravel())
    first, second, weight = (np.concatenate(parts) for parts in (firsts, seconds, weights))
    size = (index_hw.size, index_hw.size)
    one_way = sparse.coo_matrix((weight, (first, second)), shape=size).tocsr()
    both = one_way + one_way.T
    return sparse.diags(np.asarray(both.sum(axis=1)).ravel()) - both


def _slices(box: Box) -> tuple[slice, slice]:
    return slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)


def _check_class(field: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise InvalidRequestError(
            f"{field}: class {name!r}, expected {', '.join(names)}, which are asked", field=field
        )
