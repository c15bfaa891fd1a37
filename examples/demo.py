"""The whole of VESSA on a small sample of real cardiac MRI, in a few minutes on a CPU.

One patient is annotated. The demo starts a server, fills its template bank, segments
patients that the server has no label for, trains a specialist without and with VESSA, and
ends with a table and pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from ssl_trainer import config as trainer_config
from ssl_trainer.config import AssistantConfig, TrainConfig
from ssl_trainer.data.cases import Case, find
from ssl_trainer.evaluation.evaluate import Predict, evaluate
from ssl_trainer.evaluation.metrics import CaseScores
from ssl_trainer.evaluation.predictor import Predictor
from ssl_trainer.training.progress import run_with_progress
from ssl_trainer.training.trainer import Trainer, load_student
from vessa_client import (
    ClassDefinition,
    SegmentationRequest,
    SegmentationResult,
    UInt8Array,
    VessaClient,
    VessaError,
    files,
    pictures,
)
from vessa_client.console import console, progress_bar

HERE = Path(__file__).resolve().parent
CLASSES = (
    ClassDefinition(
        name="right ventricle", description="Cavity of the heart that leans on the muscle ring."
    ),
    ClassDefinition(name="myocardium", description="Muscle ring around the left cavity."),
    ClassDefinition(name="left ventricle", description="Cavity inside the muscle ring."),
)
ROWS = ("VESSA one-shot", "student without VESSA", "student with VESSA")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "outputs" / "demo")
    parser.add_argument("--steps", type=int, default=700, help="updates of each training")
    arguments = parser.parse_args()
    start, out = time.monotonic(), arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    config = dataclasses.replace(
        trainer_config.load(
            HERE / "acdc.yaml", ["data.size=96", "unimatch.ema_decay=0.99", "learning_rate=3.0e-3"]
        ),
        steps=arguments.steps,
        validate_every=max(1, arguments.steps // 6),
    )
    split = find(config.data)
    with running_server(out) as target, VessaClient(target) as client:
        console.rule("1  Template bank")
        added = fill_bank(client, split.labelled)
        console.print(f"{added} annotated slices of {', '.join(config.data.labelled)}")
        console.rule("2  One-shot segmentation of patients without a label")
        one_shot = {case.image.name: one_shot_volume(client, case) for case in split.val}
        console.rule("3  Training a student without VESSA")
        alone = train(config, out / "student_without_vessa")
        console.rule("4  Training a student with VESSA")
        assisted_config = dataclasses.replace(config, assistant=AssistantConfig(server=target))
        assisted = train(assisted_config, out / "student_with_vessa")
        console.rule("5  Results")
        images = pictures_of(split.val, one_shot, assisted, client, config, out)
    methods: list[Predict] = [
        lambda image: [result.labels for result in one_shot[image.path.name]],
        alone,
        assisted,
    ]
    scores = {
        name: evaluate(predict, split.val, config.data.classes, distances=False)
        for name, predict in zip(ROWS, methods, strict=True)
    }
    console.print(dice_table(scores))
    minutes = (time.monotonic() - start) / 60
    console.print(
        f"Done in {minutes:.1f} minutes. A run this short shows that everything works, not how "
        f"good it gets.\n\n"
        f"Pictures      {images}\n"
        f"Students      {out}/student_*/best.safetensors\n"
        f"Curves        tensorboard --logdir {out}\n"
        f"Server's log  {out / 'server.log'}\n\n"
        "Next, with your own data:\n"
        "  vessa-server serve                                  start the server\n"
        "  vessa templates add IMAGE -c NAME -c NAME           add what is annotated\n"
        "  vessa label FOLDER --out FOLDER                     pseudo-label the rest\n"
        "  ssl-trainer train CONFIG --out RUN --server localhost:50051 --fill-bank",
        highlight=False,
    )


@contextlib.contextmanager
def running_server(out: Path) -> Iterator[str]:
    """A server with the nano preset, the embedded cache and an empty bank."""
    ports = free_ports(2)
    command = [
        *(sys.executable, "-m", "vessa_server.cli", "serve"),
        *("--grpc-port", str(ports[0]), "--http-port", str(ports[1])),
        *("--bank", str(out / "bank"), "--cache", str(out / "cache")),
    ]
    target = f"127.0.0.1:{ports[0]}"
    with (out / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)  # noqa: S603
        try:
            with console.status("Starting the server"), VessaClient(target) as client:
                while not client.healthy():
                    if process.poll() is not None:
                        sys.exit(f"The server stopped:\n{(out / 'server.log').read_text()}")
                    time.sleep(0.2)
            console.print(f"Server at {target}, page at http://127.0.0.1:{ports[1]}/")
            yield target
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]


def fill_bank(client: VessaClient, labelled: tuple[Case, ...]) -> int:
    """Add all annotated slices; returns how many there are."""
    pairs = []
    for case in labelled:
        image = case.read()
        labels = case.read_labels(image, len(CLASSES))
        assert labels is not None
        pairs += [
            (image.slice(i), labels.slice(i), f"{image.stem} slice {i}")
            for i in range(image.depth)
            if labels.slice(i).any()
        ]
    with progress_bar() as progress:
        task = progress.add_task("Adding", total=len(pairs), note="")
        for pixels, labels_HW, name in pairs:
            client.add_template(pixels, labels_HW, CLASSES, name=name)
            progress.advance(task)
    return len(pairs)


def one_shot_volume(client: VessaClient, case: Case) -> list[SegmentationResult]:
    """Segment a volume over one stream, slice by slice."""
    image = case.read()
    volume, names = image.sample(), tuple(c.name for c in CLASSES)
    requests = (
        SegmentationRequest(image=pixels, volume=volume, class_names=names, request_id=str(index))
        for index, pixels in enumerate(image.slices())
    )
    results: dict[int, SegmentationResult] = {}
    with progress_bar() as progress:
        task = progress.add_task(image.stem, total=image.depth, note="")
        for item in client.segment_stream(requests):
            if isinstance(item, VessaError):
                raise item
            results[int(item.request_id)] = item
            progress.advance(task)
    return [results[index] for index in range(image.depth)]


def train(config: TrainConfig, out: Path) -> Predictor:
    """Train a student; returns the best one."""
    run_with_progress(Trainer(config, out))
    return load_student(out, config)


def dice_table(scores: dict[str, list[CaseScores]]) -> Table:
    """Mean Dice over cases, for each structure."""
    table = Table("", *(c.name for c in CLASSES), "mean", title="Dice, 3 patients without a label")
    for name, cases in scores.items():
        values = np.mean([case.dice for case in cases], axis=0)
        table.add_row(name, *(f"{v:.3f}" for v in values), f"{values.mean():.3f}")
    return table


def pictures_of(
    cases: tuple[Case, ...],
    one_shot: dict[str, list[SegmentationResult]],
    student: Predictor,
    client: VessaClient,
    config: TrainConfig,
    out: Path,
) -> Path:
    """Write a picture for each case: image, template, VESSA, student, ground truth."""
    templates = template_pictures(find(config.data).labelled, client)
    folder = out / "pictures"
    for case in cases:
        image = case.read()
        truth = case.read_labels(image, len(CLASSES))
        assert truth is not None
        predicted = student(image)
        annotated = [i for i in range(image.depth) if truth.slice(i).any()]
        rows = []
        for position in (0.25, 0.5, 0.75):
            index = annotated[int(position * (len(annotated) - 1))]
            result, pixels = one_shot[case.image.name][index], image.slice(index)
            used = result.templates[0]
            rows.append(
                pictures.panels(
                    [
                        (f"{image.stem} {index}", pictures.grey(pixels)),
                        (f"template, {used.similarity:.2f}", templates[used.template_id]),
                        ("VESSA one-shot", pictures.overlay(pixels, result.labels)),
                        ("student with VESSA", pictures.overlay(pixels, predicted[index])),
                        ("ground truth", pictures.overlay(pixels, truth.slice(index))),
                    ]
                )
            )
        files.write_picture(folder / f"{image.stem}.png", pictures.rows(rows))
    return folder


def template_pictures(labelled: tuple[Case, ...], client: VessaClient) -> dict[str, UInt8Array]:
    """Overlay of each template of the bank, by id."""
    by_name = {}
    for case in labelled:
        image = case.read()
        labels = case.read_labels(image, len(CLASSES))
        assert labels is not None
        for index in range(image.depth):
            by_name[f"{image.stem} slice {index}"] = pictures.overlay(
                image.slice(index), labels.slice(index)
            )
    return {t.template_id: by_name[t.name] for t in client.list_templates().templates}


if __name__ == "__main__":
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    main()
