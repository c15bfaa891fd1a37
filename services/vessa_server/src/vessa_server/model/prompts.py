"""What is said to the VLM, and what it is taught to answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PROMPT = "Segment {name}{shown}. {description}"
SHOWN = ", the {colour} area of another image"
# Word list of the tokenizer besides class names: body parts and image kinds users ask for.
VOCABULARY = (
    "left right upper lower anterior posterior superior inferior medial lateral inner outer "
    "heart ventricle atrium cavity myocardium wall muscle blood aorta artery vein valve septum "
    "lung liver kidney spleen pancreas stomach gallbladder bladder prostate uterus colon bowel "
    "oesophagus trachea bronchus thyroid brain hippocampus cortex cerebellum ventricles white "
    "matter grey tumour lesion oedema cyst nodule polyp vessel vessels retina optic disc cup "
    "fovea nucleus cytoplasm membrane cell mitochondria synapse bone vertebra rib femur tibia "
    "cartilage tooth mandible skull eye lens skin organ structure region background shape ring "
    "MRI CT X-ray ultrasound microscopy fundus photograph radiograph scan slice axial sagittal "
    "coronal short axis long view image bright dark thin thick round elongated small medium "
    "large inside outside around between cavity encloses enclosed leans from beside ring side "
    "red green blue yellow purple cyan"
)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SIZES = ((0.01, "tiny"), (0.04, "small"), (0.12, "medium"), (1.01, "large"))


def prompt(name: str, description: str = "", colour: str = "") -> str:
    """Text part of the prompt for one class.

    ``colour`` says which area of the template overlay shows it, where that is known.
    """
    shown = SHOWN.format(colour=colour) if colour else ""
    text = PROMPT.format(name=name.replace("_", " "), shown=shown, description=description)
    return " ".join(text.split())


def answer(mask: npt.NDArray[np.bool_]) -> str:
    """The answer taught for a mask: presence, size and place on the canvas."""
    area = float(mask.mean())
    if area == 0.0:
        return " absent"
    size = next(word for limit, word in SIZES if area < limit)
    rows, columns = np.nonzero(mask)
    row = ROWS[int(3 * rows.mean() / mask.shape[0])]
    column = COLUMNS[int(3 * columns.mean() / mask.shape[1])]
    return f" {size} at {row} {column}"


def corpus(texts: list[str]) -> list[str]:
    """Sentences from which the tokenizer is built."""
    answers = [
        f" {size} at {row} {column}" for _, size in SIZES for row in ROWS for column in COLUMNS
    ]
    return [PROMPT, SHOWN, VOCABULARY, " absent", *answers, *texts] * 4
