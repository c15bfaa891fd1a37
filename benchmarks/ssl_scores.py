"""Scores the students of a finished run: its last and its best one, in several views.

    python benchmarks/ssl_scores.py RUN val test

Writes ``RUN/scores_of_test.json``. Views: *plain*, each slice once; *turned*, also turned by some
degrees to either side; *views*, the same with quarter turns, for students of whole slices: all four
and mirrored for those trained with quarter turns, and for the others the quarter in which they are
most sure of a volume. Students with regions see slices upright. All pieces of what is found are
kept: to choose the largest ones takes validation labels, which whoever annotates one scan lacks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ssl_tasks import Facts
from ssl_trainer.config import TrainConfig, load
from ssl_trainer.data.cases import Case, find
from ssl_trainer.evaluation.evaluate import evaluate
from ssl_trainer.evaluation.predictor import Predictor, turned_by_quarters
from ssl_trainer.training.trainer import Checkpoint, load_student
from vessa_client import files

PLAIN, TURNED, VIEWS = "plain", "turned", "views"
# Checkpoints and views; distances take long, and are measured of the first one only.
SCORED: tuple[tuple[Checkpoint, str], ...] = (
    ("last", VIEWS),
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
    if view == PLAIN:
        return student.plain()
    if view == TURNED or config.regions:
        return replace(student, quarters="none")
    return replace(student, quarters="average" if turned_by_quarters(config) else "choose")


def score(run: Path, split: str) -> Facts:
    """Patients, and for each checkpoint and view the scores of each volume and structure.

    Without validation cases the best student is the last one, and is left out.
    """
    config = load(run / "config.yaml")
    found = find(config.data)
    cases: Sequence[Case] = [c for c in getattr(found, split) if c.labels is not None]
    out: Facts = {"patients": [case.patient for case in cases]}
    for checkpoint, view in SCORED:
        if checkpoint == "best" and not any(case.labels for case in found.val):
            continue
        distances = (checkpoint, view) == SCORED[0]
        student = predictor(run, config, checkpoint, view)
        scores = evaluate(student, cases, config.data.classes, distances=distances)
        metrics = ("dice", "hd95", "asd") if distances else ("dice",)
        out[f"{checkpoint}/{view}"] = {
            name: [[round(v, DIGITS) for v in getattr(s, name)] for s in scores] for name in metrics
        }
        if distances:
            out["unit"] = " and ".join(sorted({s.unit for s in scores}))
    return out


if __name__ == "__main__":
    main()
