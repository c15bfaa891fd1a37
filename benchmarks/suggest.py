"""Which scans to annotate next? Choices after the first annotated scan, against chance, on ACDC.

    python benchmarks/suggest.py --data DATA/acdc

A draw: a folder of 16 volumes, one each of 16 training patients, of which one is annotated. Each
choice puts two more into the bank, and VESSA then labels a volume of each validation patient, whom
no choice sees. Chance chooses twice in each draw. Two choices see the truth, which nobody has:
they bound what any measure of sureness could gain. Interrupted, the same command goes on.

Writes ``benchmarks/results/suggest.json``. A draw takes some ten minutes on one core.

Axes: V volumes of the folder, S slices, D features.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

import acdc
from heart import NAMES
from ssl_statistics import Values, bootstrap_interval, permutation_p
from ssl_trainer.config import DataConfig
from ssl_trainer.data.cases import Case, find
from ssl_trainer.evaluation.metrics import score
from ssl_trainer.evaluation.volumes import spacing
from vessa_client import SegmentationRequest
from vessa_client.console import console, progress_bar
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.bank import TemplateBank
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.intensity import unit_range
from vessa_server.model.preprocess import Canvas
from vessa_server.model.presets import preset
from vessa_server.model.vessa import Vessa
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.torch_runtime import TorchRuntime

FILE = acdc.RESULTS / "suggest.json"
FOLDER, MORE = 16, 2
CHANCES = ("chance", "chance again")
TEMPLATES = 7


@dataclass(frozen=True)
class Labelled:
    """What VESSA found in a volume.

    Attributes:
        dice: mean over structures.
        sureness: predicted IoU of the least sure structure, mean over its slices, as
            ``vessa label`` sorts by; 0 where nothing was found.
    """

    dice: float
    sureness: float


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of ACDC")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS / "nano")
    parser.add_argument("--draws", type=int, default=8)
    arguments = parser.parse_args()
    chooser = Chooser(arguments.data, arguments.weights)
    known = json.loads(FILE.read_text()) if FILE.is_file() else {"draws": []}
    if known["draws"] and known["weights"] != chooser.digest:
        parser.error(f"{FILE} is of other weights; remove it")
    with progress_bar() as progress:
        task = progress.add_task("draws", total=arguments.draws, note="")
        for seed in range(arguments.draws):
            if seed >= len(known["draws"]):
                facts = acdc.circumstances(weights=chooser.digest)
                draws = [*known["draws"], {**chooser.draw(seed), "commit": facts["commit"]}]
                known = {**facts, "draws": draws, "gains": gains(draws)}
                FILE.write_text(json.dumps(known, indent=1) + "\n")
            progress.advance(task)
    show(known)


class Chooser:
    """Volumes, model and choices."""

    def __init__(self, data: Path, weights: Path) -> None:
        self.digest = checkpoint.digest(weights)
        self.model: Vessa = checkpoint.load(preset("nano"), weights)
        self.runtime = TorchRuntime(self.model, self.digest)
        split = acdc.split(data, 1)
        patients = {case.patient for case in (*split.labelled, *split.unlabelled)}
        config = DataConfig(root=data, classes=NAMES, labelled=tuple(sorted(patients)))
        self.training = _by_patient(find(config).labelled)
        self.validation = [cases[0] for cases in _by_patient(split.val).values()]

    def draw(self, seed: int) -> dict[str, object]:
        """Choices in a folder, and the Dice of validation patients with each."""
        rng = np.random.default_rng(seed)
        patients = rng.choice(sorted(self.training), FOLDER, replace=False)
        cases = [self.training[p][rng.integers(len(self.training[p]))] for p in patients]
        with self.engine(cases[:1]) as engine:
            found = [label(engine, case) for case in cases]
        choices = self.choices(cases, found, rng)
        scores = {}
        for name, chosen in choices.items():
            with self.engine([cases[0], *(cases[index] for index in chosen)]) as engine:
                scores[name] = float(np.mean([label(engine, c).dice for c in self.validation]))
            console.print(seed, name, round(scores[name], 3), highlight=False)
        names = [case.read().stem for case in cases]
        return {
            "seed": seed,
            "annotated": names[0],
            "labelled": {n: vars(f) for n, f in zip(names, found, strict=True)},
            "chosen": {name: [names[i] for i in chosen] for name, chosen in choices.items()},
            "dice": scores,
        }

    def choices(
        self, cases: Sequence[Case], found: Sequence[Labelled], rng: np.random.Generator
    ) -> dict[str, list[int]]:
        """Indices of the volumes that each choice annotates; the first one is annotated already."""
        candidates = np.arange(1, len(cases))
        doubt_V = 1 - np.array([item.sureness for item in found])
        error_V = 1 - np.array([item.dice for item in found])
        like_VV = likeness([self.describe(case) for case in cases])
        chosen = {name: rng.choice(candidates, MORE, replace=False).tolist() for name in CHANCES}
        return chosen | {
            "least sure": _largest(doubt_V),
            "most like the folder": covering(like_VV, np.ones(len(cases))),
            "most like the least sure": covering(like_VV, doubt_V),
            "least Dice (needs the truth)": _largest(error_V),
            "most like those of least Dice (needs the truth)": covering(like_VV, error_V),
        }

    @contextmanager
    def engine(self, annotated: Sequence[Case]) -> Iterator[VessaEngine]:
        """With a bank of these."""
        with tempfile.TemporaryDirectory() as scratch:
            bank = TemplateBank(Path(scratch))
            acdc.fill(bank, annotated)
            yield acdc.new_engine(self.model, self.digest, bank)

    def describe(self, case: Case) -> Values:
        """(S, D) embeddings of whole slices, of length one."""
        size, image = self.runtime.info.canvas, case.read()
        whole, found = np.ones((size, size), dtype=bool), []
        for pixels in image.slices():
            canvas = (
                Canvas(pixels.shape[0], pixels.shape[1], size).place(unit_range(pixels)).numpy()
            )
            (handle,) = self.runtime.encode([canvas], StageClock())
            (features,) = self.runtime.describe([handle], [whole], StageClock())
            embedding = features.embedding_2D[0]
            found.append(embedding / np.linalg.norm(embedding))
        return np.stack(found)


def label(engine: VessaEngine, case: Case) -> Labelled:
    """VESSA's labels of a volume against the truth, and how sure it is of them."""
    image = case.read()
    truth = case.read_labels(image, len(NAMES))
    assert truth is not None
    sample = image.sample()
    answers = [
        engine.segment(SegmentationRequest(image=pixels, volume=sample, top_k=TEMPLATES))
        for pixels in image.slices()
    ]
    labels_SHW = np.stack([answer.labels for answer in answers])
    truth_SHW = np.stack(list(truth.slices())).astype(np.uint8)
    found = score(image.stem, labels_SHW, truth_SHW, len(NAMES), spacing(image), distances=False)
    sure = [
        np.mean([a.classes[index].predicted_iou for a in answers if (a.labels == index + 1).any()])
        for index in range(len(NAMES))
        if (labels_SHW == index + 1).any()
    ]
    return Labelled(float(np.mean(found.dice)), float(min(sure, default=0.0)))


def likeness(embeddings: Sequence[Values]) -> Values:
    """(V, V) of each slice of a volume (rows) the cosine to the nearest of another, their mean."""
    return np.array([[(a @ b.T).max(axis=1).mean() for b in embeddings] for a in embeddings])


def covering(like_VV: Values, weight_V: Values) -> list[int]:
    """Volumes that raise most, one after the other, the weighted likeness to the nearest annotated.

    Greedy facility location.
    """
    chosen = [0]
    for _ in range(MORE):
        nearest_V = like_VV[:, chosen].max(axis=1)
        reached = np.maximum(nearest_V[:, None], like_VV) - nearest_V[:, None]
        gains_V = weight_V @ reached
        gains_V[chosen] = -np.inf
        chosen.append(int(gains_V.argmax()))
    return chosen[1:]


def gains(draws: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each choice over the mean of both of chance, paired by draw."""
    found = {}
    for name in draws[0]["dice"]:
        own = np.array([draw["dice"][name] for draw in draws])
        chance = np.array([np.mean([draw["dice"][c] for c in CHANCES]) for draw in draws])
        low, high = bootstrap_interval(own - chance) if len(draws) > 1 else (np.nan, np.nan)
        found[name] = {
            "dice": float(own.mean()),
            "gain": float((own - chance).mean()),
            "low": low,
            "high": high,
            "p": permutation_p(own - chance),
            "better": int((own > chance).sum()),
        }
    return found


def show(known: Mapping[str, object]) -> None:
    """As a table."""
    draws, found = known["draws"], known["gains"]
    assert isinstance(draws, list)
    assert isinstance(found, dict)
    table = Table("choice", "Dice", "over chance", "95 %", "p", f"better of {len(draws)}")
    for name, row in found.items():
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        numbers = f"{row['dice']:.3f}", f"{row['gain']:+.3f}", interval, f"{row['p']:.2f}"
        table.add_row(name, *numbers, str(row["better"]))
    console.print(table)


def _largest(values_V: Values) -> list[int]:
    """The largest but for the first volume."""
    return [int(i) + 1 for i in np.argsort(-values_V[1:], kind="stable")[:MORE]]


def _by_patient(cases: Sequence[Case]) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.patient, []).append(case)
    return found


if __name__ == "__main__":
    main()
