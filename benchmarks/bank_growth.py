"""What a bank that grows during a run could bring at best: VESSA with ever more annotated patients.

    python benchmarks/bank_growth.py --data DATA/acdc

Were unlabelled volumes put into the bank with what teacher and VESSA agree on, VESSA would be at
most as good as with their true labels. Those are in the bank here: of the annotated patients of the
comparison first, then of the others by name. 3D Dice over validation patients. Writes
``benchmarks/results/bank_growth.json``; the quality of a teacher's labels in the course of a run is
in the curves of the comparison's results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import acdc
from acdc import RESULTS
from ssl_tasks import Task
from ssl_trainer.data.cases import Case
from vessa_client import files
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.bank import TemplateBank
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset

WEIGHTS = SHIPPED_WEIGHTS / "nano"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of ACDC")
    parser.add_argument("--patients", type=int, nargs="+", default=[1, 3, 7, 20, 70])
    arguments = parser.parse_args()
    split = acdc.split(arguments.data, 1)
    cases = (*split.labelled, *split.unlabelled)
    annotated = Task.load("acdc").subsets["7"]
    others = sorted({case.patient for case in cases} - set(annotated))
    rows = {}
    for count in arguments.patients:
        chosen = [*annotated, *others][:count]
        known = [case for case in cases if case.patient in chosen]
        rows[len(chosen)] = measure(f"{len(chosen)} annotated", known, split.val)
    facts = acdc.circumstances(weights=checkpoint.digest(WEIGHTS), split="val")
    file = RESULTS / "bank_growth.json"
    files.write_text(file, json.dumps({**facts, "patients": rows}, indent=2) + "\n")


def measure(name: str, annotated: Sequence[Case], cases: Sequence[Case]) -> dict[str, object]:
    """Dice with the annotated cases in the bank."""
    with tempfile.TemporaryDirectory() as scratch:
        bank = TemplateBank(Path(scratch))
        acdc.fill(bank, annotated)
        model = checkpoint.load(preset("nano"), WEIGHTS)
        engine = acdc.new_engine(model, checkpoint.digest(WEIGHTS), bank)
        found = acdc.evaluate(name, partial(acdc.ask, engine), cases)
    console.print(f"{name}: Dice {found['mean_of_structures']:.3f}", highlight=False)
    return found


if __name__ == "__main__":
    main()
