"""Which patient an image file is of, by its name and its folders.

The patient is the name up to the first part with a number: ``patient099_frame01`` is of patient099,
``BRATS_001_0000`` of BRATS_001, ``sub-01_ses-1_T1w`` of sub-01. Where a name says nothing of a
patient, as in ``p1/image``, the folder does. If in doubt two files are of one patient: then no
patient is on both sides of a split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Parts of one patient's images, alone or with a number that is theirs: frame01, slice_3, ses-1.
_NUMBERED = (
    r"frames?|fr|slices?|sl|phase|time(point)?|tp|visit|ses(sion)?|day|week|month|year|echo|run|acq"
)
_NUMBERED_WORD = re.compile(rf"({_NUMBERED})\d*", re.IGNORECASE)
# Modalities, phases and sides, which say nothing of the patient either.
_OTHER_WORD = re.compile(
    r"t1|t1w|t1n|t1c|t1ce|t1gd|t2|t2w|t2f|t2star|flair|dwi|adc|pd|pdw|lge|bssfp|cine|bold|"
    r"ct|cta|cbct|mr|mri|mra|pet|us|2d|3d|4d|ed|es|sa|la|sax|lax|systole|diastole|"
    r"pre|post|baseline|followup|arterial|venous|portal|delayed|left|right|l|r",
    re.IGNORECASE,
)
# Words that a file or a folder has whoever it is of; with a number they count cases.
_GENERIC = re.compile(
    r"(images?(tr|ts|va)?|imgs?|scans?|series|study|vol(ume)?s?|data(set)?|raw|orig(inal)?|nifti|"
    r"dicom|anat|func|train(ing)?|val(idation)?|test(ing)?|labels?|masks?|h5)\d*",
    re.IGNORECASE,
)
# A data set with its year, such as BRATS20; and what is a patient, though it looks like one.
_DATA_SET = re.compile(r"[a-z]{3,}(20)?\d\d", re.IGNORECASE)
_PATIENT = re.compile(r"(patient|pat|case|subject|subj|sub)\d+", re.IGNORECASE)
_PART = re.compile(r"[^\s_.-]+")


def names(files: Sequence[str]) -> list[str]:
    """The patient of each file of a data set.

    A data set's name before all of them, such as BRATS20 in ``BRATS20_Training_001``, is no
    patient.

    Args:
        files: paths of all files, with ``/`` between folders, from the folder of the data set or
            of the split on, without suffixes.
    """
    found = [_candidates(file) for file in files]
    if found and _is_data_set(found[0][0]) and _shared(found):
        found = [candidates[1:] for candidates in found]
    return [candidates[0] for candidates in found]


def _is_data_set(name: str) -> bool:
    return bool(_DATA_SET.fullmatch(name)) and not _PATIENT.fullmatch(name)


def _shared(found: Sequence[Sequence[str]]) -> bool:
    first = found[0][0]
    return all(len(candidates) > 1 and candidates[0] == first for candidates in found)


def _candidates(file: str) -> list[str]:
    """What may name the patient of a file, from the shortest on; at least one."""
    stem = file.rpartition("/")[2]
    prefixes = _numbered(stem)
    if prefixes and not _is_generic(stem):
        return prefixes
    folder = telling_folder(file)
    if folder is not None:
        return [folder]
    return prefixes or [_words(stem)]


def telling_folder(file: str) -> str | None:
    """Whom the folders of a file say that it is of, or what group; None where they do not.

    The innermost folder counts whose name has more than a number and words such as images or
    ses-1; else the outermost with a number.
    """
    folders = file.split("/")[:-1]
    telling = [f for f in reversed(folders) if not _is_generic(f)]
    counted = [f for f in folders if _numbered(f)]
    for folder in (*telling, *counted):
        return (_numbered(folder) or [folder])[0]
    return None


def _numbered(stem: str) -> list[str]:
    """Beginnings of a name that end with a number that is no frame's and no slice's.

    Words before it that say nothing of the patient are left out: T1_case_001 is of case_001.
    """
    start, before = None, ""
    found = []
    for part in _PART.finditer(stem):
        word = part.group()
        counts = word.isdigit() and re.fullmatch(_NUMBERED, before, re.IGNORECASE)
        before = word
        if counts or _says_nothing(word):
            continue
        start = part.start() if start is None else start
        if re.search(r"\d", word):
            found.append(stem[start : part.end()])
    return found


def _says_nothing(part: str) -> bool:
    return bool(_NUMBERED_WORD.fullmatch(part) or _OTHER_WORD.fullmatch(part))


def _is_generic(name: str) -> bool:
    """Whether files of several patients may be called so: image, 001, scan_2, ses-1."""
    parts = _PART.findall(name)
    return all(p.isdigit() or _says_nothing(p) or _GENERIC.fullmatch(p) for p in parts)


def _words(stem: str) -> str:
    """A name without a patient's number, less words at its end that say nothing of the patient.

    Of slice_001 that is slice: such files are of one patient.
    """
    parts = list(_PART.finditer(stem))
    while len(parts) > 1 and (parts[-1].group().isdigit() or _says_nothing(parts[-1].group())):
        parts.pop()
    whole = stem[: parts[-1].end()] if parts else stem
    return whole.rstrip("0123456789") or whole if _says_nothing(whole) else whole
