"""Intensities in which images are seen: for CT always a window, else percentiles of each slice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vessa_client import wire
from vessa_client._errors import InvalidRequestError
from vessa_client._types import TemplateInfo, Window
from vessa_client.files import FileError, ImageFile

# In Hounsfield units; widths and levels are 400/40, 1500/-600, 1800/400 and 80/40.
PRESETS: dict[str, Window] = {
    "soft": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
}
CT = "CT"  # as DICOM calls it
# Where a file does not say its modality: hardly anything but CT has voxels as low, the air around
# the patient, and none is above a scanner's range.
AIR, HIGHEST = -500, 32767


@dataclass(frozen=True)
class WindowChoice:
    """How the window of an image is chosen: it is given, or found.

    Attributes:
        given: for all images; None for none.
        automatic: of CT the only one that templates of the bank have, or the soft tissues'.
    """

    given: Window | None = None
    automatic: bool = True

    def of(self, image: ImageFile, templates: Iterable[TemplateInfo]) -> ImageFile:
        """An image with its window among the templates of its bank."""
        return replace(image, window=self._window(image, templates))

    def _window(self, image: ImageFile, templates: Iterable[TemplateInfo]) -> Window | None:
        if not self.automatic or not looks_like_ct(image):
            return self.given
        used = {template.window for template in templates if template.window is not None}
        return used.pop() if len(used) == 1 else PRESETS["soft"]


AUTOMATIC = WindowChoice()
WORDS = {"none": WindowChoice(automatic=False), "auto": AUTOMATIC}


def parse(text: str) -> WindowChoice:
    """Read the name of a preset, LOW:HIGH, ``none`` or ``auto``.

    Raises:
        FileError: it is something else.
    """
    if text in WORDS:
        return WORDS[text]
    try:
        low, high = PRESETS.get(text) or map(float, text.split(":"))
        wire.check_window((low, high))
    except (ValueError, InvalidRequestError) as error:
        known = ", ".join([*PRESETS, *WORDS])
        raise FileError(
            f"--window: {text!r}, expected {known}, or LOW:HIGH, such as 0:80"
        ) from error
    return WindowChoice((low, high), automatic=False)


def looks_like_ct(image: ImageFile) -> bool:
    """Whether a volume is CT: DICOM says it, of other files their values, with air in it."""
    pixels = image.pixels
    if image.axis is None or pixels.ndim != 3 or pixels.dtype.kind not in "if":
        return False
    if image.modality is not None:
        return image.modality == CT
    return bool(pixels.min() <= AIR and pixels.max() <= HIGHEST)


def described(window: Window | None) -> str:
    """A window for people."""
    return "percentiles of each slice" if window is None else f"{window[0]:g}..{window[1]:g}"
