"""Command ``ssl-trainer``: prepare, train, report, evaluate, predict, export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vessa_client.console import (
    command_line,
    console,
    explained,
    print_error,
    print_line,
    print_warning,
    progress_bar,
)
from vessa_common.spinning import spin_briefly

if TYPE_CHECKING:
    from ssl_trainer.config import TrainConfig
    from ssl_trainer.evaluation.predictor import Predictor
    from vessa_common.processes import Processes

app = command_line(
    "ssl-trainer", "Semi-supervised training (UniMatch V2) with a VESSA server as assistant."
)

spin_briefly()  # before any command imports torch

# What names of label maps end with.
SEGMENTED = "_seg"

Run = Annotated[Path, typer.Argument(help="Folder of a training run.")]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="One view of each slice in place of five, and all components of what is found in it.",
    ),
]
CheckpointOption = Annotated[
    Literal["best", "last"],
    typer.Option(
        "--checkpoint", help="The student that was best on validation cases, or the last one."
    ),
]


Threads = Annotated[int, typer.Option(help="Threads of torch; 0 for all cores.")]
Quarters = Annotated[
    str | None,
    typer.Option(
        help="Quarter turns of the views: none; average, for students trained with quarter_turns, "
        "whose default it is; or choose, for each volume the one in which the student is most sure."
    ),
]


# ConfigError, WeightsError, AssistantError, FileError are ValueErrors; FloatingPointError: a loss
# is not finite.
_explained = explained(ValueError, OSError, FloatingPointError)


@app.command()
@_explained
def prepare(
    recipe: Annotated[Path, typer.Argument(help="YAML file; see examples/abdomenct-1k.yaml.")],
    images: Annotated[Path, typer.Option(help="Folder of NIfTI volumes.")],
    labels: Annotated[Path, typer.Option(help="Folder of their label files, of the same names.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the prepared data.")],
) -> None:
    """Window, resample and split a published data set; writes what `train` reads.

    Started again it goes on where it was.
    """
    from ssl_trainer.data import prepare as preparing

    with progress_bar() as progress:
        task = progress.add_task("Preparing", total=None, note="")
        config = preparing.prepare(
            preparing.load(recipe),
            images,
            labels,
            out,
            advance=lambda total: progress.update(task, total=total, advance=1),
        )
    print_line(f"Train with:  ssl-trainer train {config} --out RUN")


@app.command()
@_explained
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see examples/acdc.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    server: Annotated[
        str | None,
        typer.Option(help="host:port of VESSA; without it, and assistant.server, alone."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser updates in all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
    threads: Annotated[
        int,
        typer.Option(
            help="Threads of torch; 0 for all cores, or for half of them where the server is on "
            "this machine, which is faster for both."
        ),
    ] = 0,
    fill_bank: Annotated[
        bool,
        typer.Option(
            "--fill-bank",
            help="Put the annotated slices into a bank of the server first, and use that: "
            "assistant.bank, or one of its own for these slices.",
        ),
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port where Prometheus may read what is logged."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key.path=value over the file; repeat.")
    ] = None,
) -> None:
    """Train a student; started again with the same --out it goes on, bit for bit.

    Writes best.safetensors, last.safetensors, config.yaml, log.jsonl, tensorboard/, and at the
    end report.md with curves, pseudo-labels over time, and a gallery, and prediction.json, which
    says of which structures only the largest component is kept.

    With --server, VESSA helps; VESSA_TOKEN is its token. It has to be there at the start, and its
    bank to show every class. Where it goes away later, training goes on alone until it is back.

    On several GPUs, or several processes:
    torchrun --nproc-per-node N --max-restarts 3 -m ssl_trainer train CONFIG --out RUN
    """
    from ssl_trainer.config import load
    from ssl_trainer.training.progress import run_with_progress
    from ssl_trainer.training.trainer import Trainer
    from vessa_client import files
    from vessa_common import memory, processes

    memory.keep_freed()
    changes = list(overrides or [])
    for key, value in (("steps", steps), ("seed", seed), ("assistant.server", server)):
        if value is not None:
            changes.append(f"{key}={json.dumps(value)}")
    settings = load(config, changes)
    files.check_writable(out)
    _compute_with(threads, settings.assistant.server)
    with processes.joined() as group, _interruptible(out, group):
        if fill_bank:
            settings = _filled_bank(settings, group)
        run_with_progress(Trainer(settings, out, group), metrics_port)
    if not group.first:
        return
    print_line(f"Best student: {out / 'best.safetensors'}")
    print_line(f"Report:       {_report(out)}")


@contextmanager
def _interruptible(out: Path, group: Processes) -> Iterator[None]:
    """Where somebody presses Ctrl-C, say what is saved; the exit code is that of shells."""
    from ssl_trainer.training import state

    try:
        yield
    except KeyboardInterrupt:
        step = state.saved_step(out)
        saved = f"step {step} is saved in {out}, and the same command goes on from there"
        if group.first:
            print_warning(f"interrupted; {'nothing is saved yet' if step is None else saved}")
        raise typer.Exit(130) from None


def _compute_with(threads: int, server: str | None) -> None:
    """Set torch's threads; beside a server half of the cores is twice as fast as all of them."""
    import os

    import torch

    from ssl_trainer.assistant.connection import on_this_machine

    # Whoever set that variable, such as torchrun, has shared out the cores.
    if not threads and server and on_this_machine(server) and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, torch.get_num_threads() // 2)
    if threads:
        torch.set_num_threads(threads)


def _filled_bank(config: TrainConfig, group: Processes) -> TrainConfig:
    """Put the annotated slices into a bank; returns the configuration with its name."""
    from ssl_trainer.assistant import own_bank

    if config.assistant.server is None:
        raise ValueError("--fill-bank: no server; say where it is with --server HOST:PORT")
    chosen = own_bank.templates(config)
    named = own_bank.named(config, chosen)
    if group.first:
        with progress_bar() as progress:
            task = progress.add_task("Filling the bank", total=len(chosen), note="")
            added = own_bank.fill(named, chosen, lambda: progress.advance(task))
        print_line(
            f"Bank {named.assistant.bank}: {added} added, {len(chosen) - added} there already."
        )
    group.meet()  # the others wait until it is full
    return named


@app.command()
@_explained
def report(run: Run) -> None:
    """Write report.md of a run, also of one that is not finished yet."""
    print_line(f"Report: {_report(run)}")


def _report(run: Path) -> Path:
    import dataclasses

    from ssl_trainer.config import load
    from ssl_trainer.data.cases import find
    from ssl_trainer.evaluation import evaluate as evaluation
    from ssl_trainer.evaluation import report as reporting
    from ssl_trainer.evaluation.predictor import write_choice
    from ssl_trainer.training.trainer import load_student

    config = load(run / "config.yaml")
    split, classes = find(config.data), config.data.classes
    predictor = load_student(run, config)
    with progress_bar() as progress:
        task = progress.add_task("Report", total=len(split.val), note="")
        advance = partial(progress.advance, task)
        chosen, scores = evaluation.choose_largest_component(
            predictor, split.val, classes, advance=advance
        )
    write_choice(run, config, chosen)
    predictor = dataclasses.replace(predictor, largest_component=chosen)
    return reporting.write(run, config, split, predictor, scores)


def _predictor(
    run: Path,
    config: TrainConfig,
    plain: bool = False,
    checkpoint: Literal["best", "last"] = "best",
    quarters: str | None = None,
) -> Predictor:
    """A student, with what was chosen for the run's predictions, or plain."""
    from ssl_trainer.training.trainer import load_student

    student = load_student(run, config, checkpoint)
    student = student.plain() if plain else student.as_chosen(run, config)
    return student if quarters is None else student.turned(quarters, config)


@app.command()
@_explained
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    threads: Threads = 0,
    plain: Plain = False,
    checkpoint: CheckpointOption = "best",
    quarters: Quarters = None,
) -> None:
    """Score a student: Dice, HD95, ASD, of volumes in 3D; writes scores_SPLIT.json.

    Another student, or other views, have a file of their own, such as scores_val_plain_last.json.
    """
    import dataclasses

    import torch

    from ssl_trainer.config import load
    from ssl_trainer.data.cases import find
    from ssl_trainer.evaluation import evaluate as evaluation
    from vessa_client import files

    if threads:
        torch.set_num_threads(threads)
    config = load(run / "config.yaml")
    found = find(config.data)
    if split not in ("val", "test"):
        raise ValueError(f"--split: {split!r}, expected val or test")
    chosen = [c for c in getattr(found, split) if c.labels is not None]
    if not chosen:
        raise ValueError(f"--split: no cases with labels in {config.data.root / split}")
    predictor = _predictor(run, config, plain, checkpoint, quarters)
    with progress_bar() as progress:
        task = progress.add_task("Evaluating", total=len(chosen), note="")
        scores = evaluation.evaluate(
            predictor, chosen, config.data.classes, advance=lambda: progress.advance(task)
        )
    others = [*(["plain"] if plain else []), *([checkpoint] if checkpoint != "best" else [])]
    others += [f"quarters-{quarters}"] if quarters is not None else []
    name = "_".join([split, *others])
    file = run / f"scores_{name}.json"
    title = f"{name.replace('_', ', ')}, {len(scores)} cases"
    console.print(evaluation.table(scores, config.data.classes, title))
    files.write_text(file, json.dumps([dataclasses.asdict(s) for s in scores], indent=2))
    print_line(f"Scores {file}")


@app.command()
@_explained
def predict(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the label maps.")],
    threads: Threads = 0,
    plain: Plain = False,
    checkpoint: CheckpointOption = "best",
    quarters: Quarters = None,
) -> None:
    """Segment a folder with a student; label maps have the geometry and format of the images.

    Writes NAME_seg. Files that cannot be read are named and left out, and the exit code is 1 then.
    """
    import torch

    from ssl_trainer.config import load
    from vessa_client import files
    from vessa_common import layouts

    config = load(run / "config.yaml")
    if threads:
        torch.set_num_threads(threads)
    predictor = _predictor(run, config, plain, checkpoint, quarters)
    images = layouts.to_predict(
        files.find_inputs(folder, out, endings=(SEGMENTED,)), predictor.channel or 0
    )
    bad = 0
    with progress_bar() as progress:
        task = progress.add_task("Predicting", total=len(images), note="")
        for path in images:
            try:
                _predict_file(predictor, path, out / files.place_below(path, folder))
            except files.FileError as error:
                bad += 1
                print_error(str(error))
            except OSError as error:
                bad += 1
                print_error(f"{path}: {error}")
            progress.advance(task)
    print_line(f"Label maps: {len(images) - bad} in {out}")
    if bad:
        raise ValueError(f"{bad} of {len(images)} images could not be segmented, see above")


def _predict_file(predictor: Predictor, path: Path, out: Path) -> None:
    from vessa_client import files

    image = files.read(path, axis=predictor.axis, channel=predictor.channel)
    doubt = predictor.mismatch(image)
    if doubt is not None:
        print_warning(doubt)
    files.write_labels(files.output_path(out, path, SEGMENTED), predictor(image), image)


@app.command()
@_explained
def export(
    run: Run,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File: .onnx, or .pt2 for torch.export.")
    ],
) -> None:
    """Write the best student for use without this package, and check that it answers alike.

    Its input is a square canvas in [0, 1], (B, 1, size, size); its output the probabilities of
    background and classes. Class names, size, how a slice becomes a canvas (`window` or
    `percentiles`, `axis`, and in words), degrees of the views that `predict` adds up, and
    structures of which it keeps the largest component are stored with it.

    A student with regions comes with a second file, NAME.locator.SUFFIX, which finds the region
    in whole slices: the two belong together.
    """
    from ssl_trainer import export as exporting
    from ssl_trainer.config import load

    config = load(run / "config.yaml")
    predictor = _predictor(run, config)
    difference = exporting.export(predictor, out, config.data.classes)
    print_line(f"{out}: largest difference {difference:.1g}")
    if predictor.locator is not None:
        print_line(f"{exporting.locator_file(out)}: finds the region that {out.name} is shown")
