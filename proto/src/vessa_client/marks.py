"""Points and boxes as people write them: ``CLASS:X,Y``, ``CLASS:X,Y,W,H``."""

from __future__ import annotations

from collections.abc import Iterable

from vessa_client._errors import InvalidRequestError
from vessa_client._types import Box, Point
from vessa_client.files import ImageFile

BACKGROUND = "background"


def points(texts: Iterable[str], image: ImageFile) -> dict[int, tuple[Point, ...]]:
    """By index of the slice that each is in.

    Args:
        texts: class, or ``background``, and place, all from 0: column and row of a picture, or the
            three indices of a voxel as it is stored, which viewers show.
        image: that is segmented.

    Raises:
        InvalidRequestError: one is malformed, or outside of the image.
    """
    found: dict[int, list[Point]] = {}
    for text in texts:
        expected = "CLASS:X,Y" if image.axis is None else "CLASS:I,J,K"
        name, place = _parsed("point", text, expected)
        try:
            index, row, column = image.place(place)
        except ValueError as error:
            raise InvalidRequestError(f"--point {text}: {error}", field="points") from error
        name = "" if name == BACKGROUND else name
        found.setdefault(index, []).append(Point(row=row, column=column, class_name=name))
    return {index: tuple(several) for index, several in found.items()}


def boxes(texts: Iterable[str], image: ImageFile) -> dict[int, tuple[Box, ...]]:
    """Those of a picture.

    Raises:
        InvalidRequestError: one is malformed, or the image is a volume.
    """
    found = []
    for text in texts:
        if image.axis is not None:
            raise InvalidRequestError(
                f"--box {text}: {image.path.name} is a volume, expected a picture; --point takes "
                "voxels",
                field="boxes",
            )
        name, (left, top, width, height) = _parsed("box", text, "CLASS:X,Y,W,H")
        found.append(Box(top=top, left=left, height=height, width=width, class_name=name))
    return {0: tuple(found)} if found else {}


def _parsed(option: str, text: str, expected: str) -> tuple[str, tuple[int, ...]]:
    name, _, place = text.rpartition(":")
    try:
        numbers = tuple(int(number) for number in place.split(","))
    except ValueError:
        numbers = ()
    if not name or len(numbers) != expected.count(",") + 1:
        raise InvalidRequestError(
            f"--{option} {text}: expected {expected}, integers from 0", field=option
        )
    return name, numbers
