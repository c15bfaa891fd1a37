"""What a window is for: the shipped weights on a lesion in soft tissue, beside air and metal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import golden_answers
from support import RunningServer, running
from vessa_client import (
    AnyArray,
    ClassDefinition,
    SegmentationRequest,
    SegmentationResult,
    UInt8Array,
    VessaClient,
)
from vessa_client._types import Window
from vessa_client.windows import PRESETS
from vessa_server.bank import Banks
from vessa_server.cache import NoCache
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.runtime.torch_runtime import TorchRuntime

SOFT = PRESETS["soft"]
SIZE = 96


def phantom(seed: int) -> tuple[AnyArray, UInt8Array]:
    """Hounsfield units: air, tissue of 40, in it a lesion of 70, and metal; and the lesion."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    row, column = rng.uniform(0.38, 0.62, 2)
    lesion = (rows - row) ** 2 + (columns - column) ** 2 < 0.13**2
    values = np.full((SIZE, SIZE), -1000.0)
    values[((rows - 0.5) / 0.46) ** 2 + ((columns - 0.5) / 0.42) ** 2 < 1] = 40
    values[lesion] = 70
    values[(rows - 0.82) ** 2 + (columns - 0.5) ** 2 < 0.07**2] = 3000
    noisy = values + rng.normal(0, 12, values.shape)
    return noisy.round().astype(np.int16), lesion.astype(np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = checkpoint.load(preset("nano"), golden_answers.WEIGHTS)
    banks = Banks(tmp_path_factory.mktemp("ct"))
    for name, window in (("seen", SOFT), ("percentiles", None)):
        for seed in (1, 2):
            bank = banks.get(name, create=True)
            bank.add(*phantom(seed), [ClassDefinition(name="lesion")], window=window)
    with running(VessaEngine(TorchRuntime(model, "0" * 64), banks, NoCache())) as started:
        yield started


def test_a_lesion_in_soft_tissue_is_found_in_the_window_alone(server: RunningServer) -> None:
    with VessaClient(server.grpc) as client:
        for seed in (11, 12):
            image, truth = phantom(seed)
            found = {
                (bank, window): _dice(
                    client.segment(SegmentationRequest(image=image, window=window, bank=bank)),
                    truth,
                )
                for bank, window in (("seen", SOFT), ("seen", None), ("percentiles", None))
            }
            assert found.pop(("seen", SOFT)) > 0.9
            assert max(found.values()) < 0.8


def test_answers_in_one_window_are_not_taken_for_those_in_another(server: RunningServer) -> None:
    image, beside = phantom(11)[0], phantom(12)[0]
    with VessaClient(server.grpc) as client:

        def ask(window: Window | None) -> SegmentationResult:
            """By reference, once the server has the slices."""
            volume = (image, beside)
            return client.segment(
                SegmentationRequest(image=image, volume=volume, window=window, bank="seen")
            )

        first = {window: ask(window) for window in (None, SOFT, PRESETS["lung"])}
        assert len({result.image_sha256 for result in first.values()}) == 1
        for window in first:
            again = ask(window)
            assert again.image_features_cached
            for other, kept in first.items():
                same = np.array_equal(again.confidence, kept.confidence)
                assert same == (window == other)


def _dice(result: SegmentationResult, truth: UInt8Array) -> float:
    found, true = result.labels.astype(bool), truth.astype(bool)
    return 2 * float((found & true).sum()) / float(found.sum() + true.sum())
