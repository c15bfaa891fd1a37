"""Results of a labelled folder: label maps, pictures, what each was made with, table and page.

A label map that is stale is told, and one that was edited is never overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vessa_client import files, index_page, pictures, records
from vessa_client._types import SegmentationResult, TemplateInfo, UInt8Array
from vessa_client.annotated import LabelScheme
from vessa_client.records import Record, Records, Settings, digest

# Of a volume, in its picture; and templates that are named there.
SLICES_SHOWN, TEMPLATES_SHOWN = 8, 3
PSEUDO, CONFIDENCE = "_pseudo", "_confidence"
PREVIEWS = "previews"
EDITED = "edited since; remove its label map to have an image labelled anew"


def inputs(folder: Path, out: Path) -> list[Path]:
    """Images of a folder that is labelled into ``out``; no results, of any call, are among them.

    Raises:
        FileError: the folder is missing, or there are no images.
    """
    outs = {out, *(file.parent for file in folder.rglob(records.FILE))}
    places = [place for other in sorted(outs) for place in (other, other / PREVIEWS)]
    return files.find_inputs(folder, *places, endings=(PSEUDO, CONFIDENCE))


def name_below(image: Path, folder: Path) -> str:
    """Of an image of a labelled folder, as records have it."""
    return image.name if image == folder else image.relative_to(folder).as_posix()


def label_map(image: Path, folder: Path, out: Path) -> Path:
    """Where the label map of an image of a labelled folder is."""
    return files.output_path(out / files.place_below(image, folder), image, PSEUDO)


@dataclass
class Results:
    """Those of a folder.

    Attributes:
        folder: that is labelled.
        out: of the results.
        scheme: classes and their values; None for all of the bank.
        settings: of now.
        overwrite: label anew what was made with others.
        records: of what is there.
        templates: of the bank.
    """

    folder: Path
    out: Path
    scheme: LabelScheme | None
    settings: Settings
    overwrite: bool
    records: Records
    templates: Sequence[TemplateInfo]

    def place(self, image: Path) -> Path:
        """Folder of an image's results: the same place below ``out`` as below ``folder``."""
        return self.out / files.place_below(image, self.folder)

    def state(self, path: Path) -> tuple[Literal["wanted", "kept"], str]:
        """Whether an image is to be labelled; why its label map is kept, where that is not plain.

        Raises:
            FileError: it has other classes, and is not to be overwritten.
        """
        target = label_map(path, self.folder, self.out)
        state, how = self.records.state(name_below(path, self.folder), target, self.settings)
        if state == "edited":
            return "kept", EDITED
        if state == "missing" or (self.overwrite and state != "made"):
            return "wanted", ""
        if how.startswith("classes"):
            raise files.FileError(f"{self.out}: has {how}; give another --out, or --overwrite")
        if state == "unknown":
            how = "made by nobody knows what"
        return "kept", f"{how}; --overwrite makes them anew" if how else ""

    def write(self, image: files.ImageFile, results: Sequence[SegmentationResult]) -> str:
        """Write what was found in an image; returns what could not be written, in words."""
        place = self.place(image.path)
        picture = self.out / PREVIEWS / files.place_below(image.path, self.folder)
        picture /= f"{files.own_stem(image.path)}.png"
        names = [found.class_name for found in results[0].classes]
        files.write_picture(picture, _picture(image, [r.labels for r in results], names))
        confidence = files.output_path(place, image.path, CONFIDENCE)
        files.write_labels(confidence, [r.confidence for r in results], image)
        _, message = write_labels(place, image, results, self.scheme)
        first = results[0]
        record = Record(
            settings=replace(
                self.settings, bank_version=first.bank_version, model=first.model_digest
            ),
            digest=digest(label_map(image.path, self.folder, self.out)),
            structures=_structures(results, self.scheme),
            templates=self._templates(results),
            slices=image.depth,
            picture=picture.relative_to(self.out).as_posix(),
        )
        self.records = self.records.with_entry(name_below(image.path, self.folder), record)
        return message

    def show_edits(self, image: files.ImageFile) -> None:
        """Bring figures and picture of an image up to its label map, which was edited.

        Raises:
            FileError: the label map cannot be read, or is not the image's.
        """
        name = name_below(image.path, self.folder)
        target, record = label_map(image.path, self.folder, self.out), self.records.entries[name]
        edited = digest(target)
        if record.edited == edited:
            return
        found = files.read(target, axis=image.axis, labels=True)
        image.check_same_space(found)
        numbers = np.zeros(256, np.uint8)
        for number, structure in enumerate(record.structures, start=1):
            numbers[structure["label"]] = number
        labels = [numbers[plane] for plane in found.slices()]
        names = [str(structure["class"]) for structure in record.structures]
        files.write_picture(self.out / record.picture, _picture(image, labels, names))
        voxels = np.bincount(np.concatenate([plane.ravel() for plane in labels]), minlength=256)
        structures = tuple(
            {**structure, "voxels": int(voxels[number]), "predicted_iou": 0.0}
            for number, structure in enumerate(record.structures, start=1)
        )
        changed = replace(record, structures=structures, edited=edited)
        self.records = self.records.with_entry(name, changed)

    def finish(self) -> None:
        """Write table and page of all images."""
        if self.records.entries:
            files.write_text(self.out / "summary.csv", self.records.table())
            title = f"Pseudo-labels of {self.folder.resolve().name}"
            files.write_text(self.out / "index.html", index_page.page(self.records, title))

    def _templates(self, results: Sequence[SegmentationResult]) -> tuple[tuple[str, float], ...]:
        """Names of those that were used most, with their mean similarity."""
        uses: dict[str, list[float]] = {}
        for use in (use for result in results for use in result.templates):
            uses.setdefault(use.template_id, []).append(use.similarity)
        names = {t.template_id: t.name for t in self.templates}
        most = sorted(uses.items(), key=lambda item: -len(item[1]))[:TEMPLATES_SHOWN]
        return tuple(
            (names.get(template_id) or template_id, round(float(np.mean(values)), 3))
            for template_id, values in most
        )


def write_labels(
    folder: Path,
    image: files.ImageFile,
    results: Sequence[SegmentationResult],
    scheme: LabelScheme | None,
) -> tuple[list[Path], str]:
    """Write the labels of an image, ``NAME_pseudo``, of DICOM as a segmentation object, too.

    Args:
        folder: where they go.
        image: that was segmented.
        results: of each of its slices.
        scheme: values of the label map, where they are others than 1, 2, ...

    Returns:
        what was written, the label map last, since its presence says that the image is done; and
        why there is no segmentation object, in words.
    """
    labels, written, message = [result.labels for result in results], [], ""
    if files.is_dicom(image.path):
        seg = folder / f"{files.own_stem(image.path)}{PSEUDO}.dcm"
        names = [found.class_name for found in results[0].classes]
        model = f"VESSA {results[0].model_digest[:12]}"
        try:
            files.write_segmentation(seg, labels, image, names, model=model)
            written.append(seg)
        except files.FileError as error:
            message = str(error)
    target = files.output_path(folder, image.path, PSEUDO)
    values = [scheme.to_values(found) for found in labels] if scheme else labels
    files.write_labels(target, values, image)
    return [*written, target], message


def _structures(
    results: Sequence[SegmentationResult], scheme: LabelScheme | None
) -> tuple[dict[str, Any], ...]:
    """Name, value, voxels and predicted IoU of each class, over the slices where it was found."""
    values = scheme.values if scheme else range(1, 256)
    found = []
    for label, structure in enumerate(results[0].classes, start=1):
        voxels = [int((r.labels == label).sum()) for r in results]
        ious = [
            r.classes[label - 1].predicted_iou for r, n in zip(results, voxels, strict=True) if n
        ]
        found.append(
            {
                "class": structure.class_name,
                "label": values[label - 1],
                "voxels": sum(voxels),
                "predicted_iou": round(float(np.mean(ious)), 3) if ious else 0.0,
            }
        )
    return tuple(found)


def _picture(
    image: files.ImageFile, labels: Sequence[UInt8Array], names: Sequence[str]
) -> UInt8Array:
    """Slices of an image, evenly spread over those with labels, with and without them."""
    shown = [k for k, plane in enumerate(labels) if plane.any()] or list(range(len(labels)))
    chosen = [shown[position] for position in files.spread(len(shown), SLICES_SHOWN)]
    titled = [(f"slice {k}" if image.depth > 1 else "", image.seen(k)) for k in chosen]
    height = 160 if image.depth > 1 else 320
    montage = pictures.montage(titled, [labels[k] for k in chosen], height)
    return pictures.rows([pictures.legend(list(names)), montage])
