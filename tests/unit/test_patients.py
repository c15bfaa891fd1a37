"""Which patient a file is of, by its name and its folders."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vessa_common.patients import names


@pytest.mark.parametrize(
    ("files", "patients"),
    [
        ("patient099_frame01 patient099_frame02", "patient099 patient099"),
        ("patient001_ED patient001_ES patient001_4d", "patient001 patient001 patient001"),
        ("patient001_frame01_slice_1 patient001_frame01_slice_2", "patient001 patient001"),
        ("case_000 case_001", "case_000 case_001"),
        ("hippocampus_001 hippocampus_367", "hippocampus_001 hippocampus_367"),
        ("BRATS_001_0000 BRATS_001_0001 BRATS_002_0000", "BRATS_001 BRATS_001 BRATS_002"),
        ("sub-01_ses-1_T1w sub-01_ses-2_T1w sub-02_T1w", "sub-01 sub-01 sub-02"),
        ("sub-01/ses-1/anat/sub-01_ses-1_T1w", "sub-01"),
        (
            "BRATS20_Training_001 BRATS20_Training_002",
            "BRATS20_Training_001 BRATS20_Training_002",
        ),
        ("FLARE22_Tr_0001_0000 FLARE22_Tr_0002_0000", "FLARE22_Tr_0001 FLARE22_Tr_0002"),
        ("BraTS-GLI-00000-000-t1n BraTS-GLI-00000-001-t1n", "BraTS-GLI-00000 BraTS-GLI-00000"),
        ("case107_day19_slice_0093 case107_day20_slice_0001", "case107 case107"),
        ("022_HC 022_2HC", "022 022"),
        ("10001_500_a2 10001_509_a1", "10001 10001"),
        ("2a1a294e21d7_0 2a1a294e21d7_1", "2a1a294e21d7 2a1a294e21d7"),
        ("06SR5RBREL16DQ6M8LWS JPCLN002", "06SR5RBREL16DQ6M8LWS JPCLN002"),
        ("volume-12 volume-13 img0001 scan_001", "volume-12 volume-13 img0001 scan_001"),
        ("T1_case_001 T2_case_001 T2_case_002", "case_001 case_001 case_002"),
        ("day3_p1 day_4_p1", "p1 p1"),
        ("alice_ED alice_ES bob_ED", "alice alice bob"),
        ("001 002", "001 002"),
        # Folders, where the names say nothing.
        ("p1/image p2/image p10/image", "p1 p2 p10"),
        ("p1/t1 p1/flair p1/ses-2/image", "p1 p1 p1"),
        ("p1/001 p1/002 p2/001", "p1 p1 p2"),
        ("001/image 002/scan_2", "001 002"),
        ("s0001/ct s0002/ct", "s0001 s0002"),
        ("alice/scan_a bob/scan_a", "alice bob"),
        ("images/001 images/002", "001 002"),
        ("patient001/patient001_frame01", "patient001"),
        # Nothing says whose they are: one patient's, so that none is on two sides.
        ("slice_001 slice_002", "slice slice"),
        ("frame01 frame02", "frame frame"),
        ("_", "_"),
    ],
)
def test_patients_are_found_in_the_names_that_people_use(files: str, patients: str) -> None:
    assert names(files.split()) == patients.split()


def test_a_data_set_without_files_has_no_patients() -> None:
    assert names([]) == []


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 9999), min_size=1, max_size=8, unique=True),
    st.sampled_from(["patient{:03d}", "case_{:03d}", "BRATS_{}", "{:04d}", "sub-{:02d}", "p{}"]),
    st.lists(
        st.sampled_from(
            ["_frame{}", "_slice_{}", "_{:04d}", "_ED", "_ses-{}", "_T1w", "-t2f", "_{}", "_4d"]
        ),
        max_size=4,
    ),
    st.integers(0, 30),
)
def test_endings_tell_no_patients_apart_and_numbers_do(
    numbers: list[int], form: str, endings: list[str], counted: int
) -> None:
    whole = [form.format(number) for number in numbers]
    files = [patient + "".join(endings).format(*[counted] * 4) for patient in whole]
    assert names(files + whole) == whole + whole
    assert names([f"{patient}/image{counted}" for patient in whole]) == whole
