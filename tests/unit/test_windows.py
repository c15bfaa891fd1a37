"""Windows of intensities: how they scale, which one an image has, templates that keep theirs."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.uid import CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage

from support import CLASSES, picture
from support_dicom import write_series
from vessa_client import AnyArray, InvalidRequestError, TemplateInfo, files, wire
from vessa_client._types import Window
from vessa_client.files import FileError, ImageFile
from vessa_client.windows import AUTOMATIC, PRESETS, parse
from vessa_server.bank import TemplateBank
from vessa_server.model import intensity

SOFT = PRESETS["soft"]
finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(
    arrays(np.int16, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    st.tuples(finite, finite).filter(lambda w: w[0] < w[1]),
)
def test_a_window_scales_each_pixel_by_itself(image: AnyArray, window: Window) -> None:
    low, high = window
    unit = intensity.unit_range(image, window)[0]
    for place, value in np.ndenumerate(image):
        expected = min(max((float(value) - low) / (high - low), 0.0), 1.0)
        assert math.isclose(float(unit[place]), expected, abs_tol=1e-6)


@pytest.mark.parametrize(
    "window", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf), (-1.7e308, 1.7e308)]
)
def test_a_window_that_is_none_is_refused(window: Window, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"window: .*, expected finite"):
        wire.check_window(window)
    with pytest.raises(InvalidRequestError, match="window"):
        TemplateBank(tmp_path).add(*picture(0), CLASSES, window=window)


@pytest.mark.parametrize(
    ("text", "window"),
    [("lung", (-1350.0, 150.0)), ("-100:200.5", (-100.0, 200.5)), ("none", None)],
)
def test_a_window_is_given_by_name_or_numbers(text: str, window: Window | None) -> None:
    choice = parse(text)
    assert choice.of(volume(-1000, 1000), []).window == window
    assert choice.of(volume(0, 255), []).window == window


@pytest.mark.parametrize("text", ["", "liver", "5", "1:2:3", "2:1", "nan:1", "a:b"])
def test_a_word_that_is_no_window_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(
        FileError, match=r"--window: .*expected soft, lung, bone, brain, none, auto"
    ):
        parse(text)


def test_ct_is_known_by_the_air_and_seen_as_the_bank_sees_it() -> None:
    ct, other = volume(-1024, 1500), volume(-400, 1500)
    assert AUTOMATIC.of(other, [template(SOFT)]).window is None
    assert AUTOMATIC.of(ct, []).window == SOFT
    assert AUTOMATIC.of(ct, [template(None)]).window == SOFT
    assert AUTOMATIC.of(ct, [template((0.0, 80.0)), template(None)]).window == (0.0, 80.0)
    assert AUTOMATIC.of(ct, [template((0.0, 80.0)), template((0.0, 90.0))]).window == SOFT
    picture = ImageFile(Path("x.tif"), np.full((9, 9), -1000, np.int16), None, None)
    assert AUTOMATIC.of(picture, []).window is None


@pytest.mark.parametrize(
    ("modality", "kind", "intercept", "window"),
    [
        ("CT", CTImageStorage, -100, SOFT),  # no air in it
        ("CT", CTImageStorage, -1024, SOFT),
        ("CT", SecondaryCaptureImageStorage, -100, None),
        ("MR", MRImageStorage, -2000, None),  # such as phases
    ],
)
def test_dicom_says_itself_whether_it_is_ct(
    modality: str, kind: str, intercept: int, window: Window | None, tmp_path: Path
) -> None:
    written = write_series(
        tmp_path / "series",
        Modality=modality,
        SOPClassUID=kind,
        RescaleIntercept=intercept,
        RescaleSlope=1,
    )
    for path in (tmp_path / "series", written[0]):
        assert AUTOMATIC.of(files.read(path), []).window == window
    expected = None if kind == SecondaryCaptureImageStorage else modality
    assert files.modality(tmp_path / "series") == expected
    assert parse("lung").of(files.read(tmp_path / "series"), []).window == PRESETS["lung"]


def test_a_picture_of_a_slice_shows_what_the_window_shows() -> None:
    ct = AUTOMATIC.of(volume(-1024, 1500), [])
    assert (ct.seen(0).min(), ct.seen(0).max()) == SOFT
    assert (ct.slice(0).min(), ct.slice(0).max()) == (-1024, 1500)


def test_a_template_keeps_its_window_and_is_another_one_in_another(tmp_path: Path) -> None:
    bank = TemplateBank(tmp_path)
    image, labels = picture(0)
    plain, _ = bank.add(image, labels, CLASSES)
    seen, new = bank.add(image, labels, CLASSES, window=SOFT)
    assert new
    assert not bank.add(image, labels, CLASSES, window=SOFT)[1]
    assert [t.window for t in TemplateBank(tmp_path).snapshot().templates] == [None, SOFT]
    loaded = TemplateBank(tmp_path).load(seen)
    assert loaded.info.window == SOFT
    assert (loaded.image.max(), loaded.seen.max()) == (image.max(), min(image.max(), SOFT[1]))
    # What older versions made, and read.
    parts = (wire.image_digest(image), wire.image_digest(labels), *(c.name for c in CLASSES))
    assert plain.template_id == hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    written = json.loads((tmp_path / "index.json").read_text())["templates"]
    assert ["window" in entry for entry in written] == [False, True]
    (tmp_path / "index.json").unlink()
    rebuilt = TemplateBank.rebuild(tmp_path)
    assert {t.template_id: t.window for t in rebuilt.templates} == {
        plain.template_id: None,
        seen.template_id: SOFT,
    }


def volume(low: int, high: int) -> ImageFile:
    """Three slices with values from ``low`` to ``high``."""
    pixels = np.tile(np.linspace(low, high, 12 * 12).astype(np.int16).reshape(12, 12, 1), (1, 1, 3))
    return ImageFile(Path("scan.nii.gz"), pixels, 2, None)


def template(window: Window | None) -> TemplateInfo:
    return TemplateInfo(
        template_id="0" * 16, name="", height=9, width=9, class_names=("disc",), window=window
    )
