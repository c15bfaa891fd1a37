"""What is said to the VLM, and what it is taught to answer. Axes: P pairs, H W space."""

from __future__ import annotations

import re

import torch
from torch import Tensor

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
    "red green blue yellow purple cyan orange pink"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SIZES = ((0.01, "tiny"), (0.04, "small"), (0.12, "medium"), (1.01, "large"))


def prompt(name: str, description: str = "", colour: str = "") -> str:
    """Text part of the prompt for one class.

    ``colour`` says which area of the template overlay shows it, where that is known. Control
    characters count as spaces.
    """
    shown = SHOWN.format(colour=colour) if colour else ""
    text = PROMPT.format(name=name.replace("_", " "), shown=shown, description=description)
    return " ".join(CONTROL.sub(" ", text).split())


# What is taught: absent, or size and place on the canvas.
ANSWERS = (
    " absent",
    *(f" {size} at {row} {column}" for _, size in SIZES for row in ROWS for column in COLUMNS),
)


def answer_row(mask_PHW: Tensor) -> Tensor:
    """Which of :data:`ANSWERS` is right for each mask, (P,)."""
    _, height, width = mask_PHW.shape
    mask = mask_PHW.float()
    pixels_P = mask.sum(dim=(1, 2))
    share_P = pixels_P / (height * width)
    size_P = torch.stack([share_P >= limit for limit, _ in SIZES[:-1]]).sum(dim=0)

    def third(weight_PL: Tensor) -> Tensor:
        """In which third of an axis the centre of mass lies."""
        length = weight_PL.shape[1]
        place_L = torch.arange(length, device=mask.device, dtype=mask.dtype)
        centre_P = (weight_PL * place_L).sum(dim=1) / pixels_P.clamp(min=1)
        return (3 * centre_P / length).long().clamp(max=2)

    row_P, column_P = third(mask.sum(dim=2)), third(mask.sum(dim=1))
    place_P = 1 + (size_P * len(ROWS) + row_P) * len(COLUMNS) + column_P
    return torch.where(pixels_P > 0, place_P, torch.zeros_like(place_P))


def corpus(texts: list[str]) -> list[str]:
    """Sentences from which the tokenizer is built."""
    return [PROMPT, SHOWN, VOCABULARY, *ANSWERS, *texts] * 4
