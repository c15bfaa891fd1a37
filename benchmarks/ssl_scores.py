"""Scores the students of a finished run: its last and its best one, in several views.

    python benchmarks/ssl_scores.py RUN val test

Writes ``RUN/scores_of_test.json``. Views: *plain*, each slice once; *turned*, also turned by some
degrees to either side; *views*, the same with quarter turns, for students of whole slices: all
four, mirrored and not, for those trained with quarter turns, and for the others the quarter in
which they are most sure of a volume; *others*, of these two what the student does not usually have.
Students with regions see slices upright. All components of what is found are kept: to choose the
largest ones takes validation labels, which whoever annotates one scan lacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ssl_tasks import Facts
from ssl_trainer.config import TrainConfig, load
from ssl_trainer.data.cases import Case, find
from ssl_trainer.evaluation.evaluate import evaluate
from ssl_trainer.evaluation.metrics import CaseScores
from ssl_trainer.evaluation.predictor import Predictor, turned_by_quarters
from ssl_trainer.evaluation.volumes import Quarters
from ssl_trainer.training.trainer import Checkpoint, load_student
from vessa_client import files

PLAIN, TURNED, VIEWS, OTHERS = "plain", "turned", "views", "others"
# Checkpoints and views; distances take long, and are measured of the first one only.
SCORED: tuple[tuple[Checkpoint, str], ...] = (
    ("last", VIEWS),
    ("last", OTHERS),
    ("last", TURNED),
    ("last", PLAIN),
    ("best", VIEWS),
    ("best", PLAIN),
)
DIGITS = 4


def main() -> None:
    """Score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("splits", choices=("val", "test"), nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for split in arguments.splits:
        found = score(arguments.run, split)
        files.write_text(scores_file(arguments.run, split), json.dumps(found))


def scores_file(run: Path, split: str) -> Path:
    """Where they are written."""
    return run / f"scores_of_{split}.json"


def predictor(run: Path, config: TrainConfig, checkpoint: Checkpoint, view: str) -> Predictor:
    """A student of a run, in such views."""
    student = load_student(run, config, checkpoint)
    return student.plain() if view == PLAIN else replace(student, quarters=_quarters(config, view))


def _quarters(config: TrainConfig, view: str) -> Quarters:
    if view == TURNED or config.regions:
        return "none"
    return "average" if turned_by_quarters(config) == (view == VIEWS) else "choose"


def score(run: Path, split: str) -> Facts:
    """Patients, and for each checkpoint and view the scores of each volume and structure.

    Without validation cases the best student is the last one, and is left out.
    """
    config = load(run / "config.yaml")
    found = find(config.data)
    cases: Sequence[Case] = [c for c in getattr(found, split) if c.labels is not None]
    out: Facts = {"patients": [case.patient for case in cases]}
    known: dict[object, Facts] = {}
    for checkpoint, view in SCORED:
        if checkpoint == "best" and not any(case.labels for case in found.val):
            continue
        student = predictor(run, config, checkpoint, view)
        # The last student may be the best one, and views the same.
        what = _digest(student.student), student.turns, student.quarters
        if what not in known:
            distances = (checkpoint, view) == SCORED[0]
            scores = evaluate(student, cases, config.data.classes, distances=distances)
            known[what] = _rounded(scores, distances=distances)
            if distances:
                out["unit"] = " and ".join(sorted({s.unit for s in scores}))
        out[f"{checkpoint}/{view}"] = known[what]
    return out


def _digest(student: nn.Module) -> bytes:
    """Of its weights."""
    found = hashlib.sha256()
    for value in student.state_dict().values():
        found.update(value.cpu().numpy().tobytes())
    return found.digest()


def _rounded(scores: Sequence[CaseScores], *, distances: bool) -> Facts:
    """Of each volume and structure."""
    metrics = ("dice", "hd95", "asd") if distances else ("dice",)
    return {
        name: [[round(value, DIGITS) for value in getattr(s, name)] for s in scores]
        for name in metrics
    }


if __name__ == "__main__":
    main()
