"""Command ``vessa-server``: serve, and train VESSA itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from pydantic import ValidationError

from vessa_client.console import command_line, console, print_error
from vessa_common.spinning import spin_briefly

log = structlog.get_logger(__name__)
app = command_line("vessa-server", "The VESSA segmentation server.")


def _fail(message: str) -> typer.Exit:
    print_error(message)
    return typer.Exit(2)


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address; 0.0.0.0 for all. Default: 127.0.0.1.")
    ] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port. Default: 50051.")] = None,
    http_port: Annotated[int | None, typer.Option(help="REST and page. Default: 8080.")] = None,
    preset: Annotated[str | None, typer.Option(help="nano, base or large. Default: nano.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of weights. Default: shipped.")
    ] = None,
    adaptation: Annotated[
        Path | None, typer.Option(help="File that `adapt` wrote. Default: none.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda or cuda:N, several with commas. Default: auto."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16. Default: auto.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="torch, or triton://host:port. Default: torch.")
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="Folder of templates. Default: vessa-bank.")
    ] = None,
    studies: Annotated[
        Path | None,
        typer.Option(help="Folder of scans for MONAI Label's clients. Default: none."),
    ] = None,
    runs_dir: Annotated[
        Path | None,
        typer.Option("--runs", help="Folder of the trainer's runs, to look at. Default: none."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="redis://host:port/db, a folder, or none. Default: vessa-cache."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="That compute on a CPU. Default: half of the cores.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="console or json. Default: console.")
    ] = None,
) -> None:
    """Serve gRPC and REST until SIGTERM or Ctrl-C.

    Every setting is also an environment variable, VESSA_GRPC_PORT and so on; flags win.
    docs/serving.md lists them all.
    """
    spin_briefly()

    from vessa_server.api.logs import configure_logs
    from vessa_server.api.settings import ServerSettings, unknown_settings

    flags: dict[str, Any] = {
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "preset": preset,
        "weights": weights,
        "adaptation": adaptation,
        "device": device,
        "dtype": dtype,
        "runtime": runtime,
        "bank": bank,
        "studies": studies,
        "runs_dir": runs_dir,
        "cache": cache,
        "threads": threads,
        "log_format": log_format,
    }
    for name in unknown_settings():
        print_error(f"warning: {name} is no setting of the server; docs/serving.md lists them")
    try:
        settings = ServerSettings(**{k: v for k, v in flags.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        name = ".".join(map(str, first["loc"]))
        named = name if flags.get(name) is not None else f"VESSA_{name.upper()}"
        given = "" if name == "token" else f"={str(first['input'])[:80]!r}"
        raise _fail(f"{named}{given}: {reason}") from None
    configure_logs(settings.log_format)
    log.info("server.starting", weights=str(settings.weights_folder()), device=settings.device)

    # After the settings are checked: importing the model takes seconds.
    from vessa_server.api.grpc.server import PortInUseError
    from vessa_server.api.run import build_engines, run
    from vessa_server.bank import BankError

    try:
        run(build_engines(settings), settings)
    except (BankError, PortInUseError, ValueError, OSError) as error:
        raise _fail(str(error)) from None


@app.command()
def pack(
    config: Annotated[str, typer.Argument(help="YAML file, or a recipe: nano or base.")],
    data: Annotated[Path, typer.Option(help="Folder with one folder for each data set.")],
    out: Annotated[Path, typer.Option(help="File to write; its digest goes beside it.")],
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="Of the WebP pictures; 100 is without loss.")
    ] = 80,
) -> None:
    """Pack the annotated slices of a recipe's data sets into one file, for `train --pack`.

    For machines that the data sets are too large to bring to.
    """
    from vessa_server.training import config as configuration
    from vessa_server.training import pack as packs
    from vessa_server.training.run import make_pack

    try:
        slices = make_pack(configuration.load(config), data)
        if slices is None:
            raise ValueError(f"config: {config} names no data sets to pack")
        digest = packs.write(slices, out, quality=quality)
    except (ValueError, OSError) as error:
        raise _fail(str(error)) from None
    console.print(packs.describe(slices), highlight=False)
    size = out.stat().st_size / 2**20
    console.print(f"{out}: {size:.1f} MiB, sha256 {digest}", highlight=False)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML file, or a recipe: nano or base.")],
    out: Annotated[Path, typer.Option(help="Folder for weights, state and TensorBoard.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with one folder for each data set.")
    ] = None,
    pack: Annotated[
        Path | None, typer.Option(help="File that `vessa-server pack` made, in place of --data.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Folder of weights to begin with.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates. Default: the file's.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="End by the clock. Default: the file's.")
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(help="Last share of the run in which the learning rate falls; 0 to go on."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed. Default: the file's.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out this data set; may be repeated.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 for all cores.")] = 0,
) -> None:
    """Train VESSA (Stage 1) on annotated data sets of your own and on made-up tasks.

    Started again with the same --out it goes on where it stopped; a run that ends after a
    number of updates is then the unbroken one, bit for bit. OUT/first_batch.png shows at once
    whether images and labels are as meant; look at the rest with `tensorboard --logdir OUT`.
    On several GPUs: `torchrun --nproc-per-node 4 -m vessa_server train ...`. docs/stage1.md
    has the keys.
    """
    import torch

    from vessa_common.processes import joined
    from vessa_server.training import config as configuration
    from vessa_server.training import pack as packs
    from vessa_server.training.run import make_pack
    from vessa_server.training.run import train as run

    if threads:
        torch.set_num_threads(threads)
    overrides = {"steps": steps, "minutes": minutes, "decay_share": decay, "seed": seed}
    try:
        settings = configuration.load(config, overrides)
        if data is not None and pack is not None:
            raise ValueError("--data and --pack: expected one of them")
        if pack is None and data is None and settings.data.sources:
            raise ValueError(f"config: {config} names data sets; give --data, or --pack")
        slices = None
        if pack is not None:
            slices = packs.read(pack)
        elif data is not None:
            slices = make_pack(settings, data)
        if without and slices is not None:
            slices = packs.without(slices, without)
        with joined() as processes:
            run(settings, slices, out, init=init, processes=processes)
    except (ValueError, ArithmeticError, OSError) as error:
        raise _fail(str(error)) from None
    console.print(f"Weights in {out}. Serve them: vessa-server serve --weights {out}")


@app.command()
def adapt(
    bank: Annotated[Path, typer.Option(help="Folder of the template bank.")],
    out: Annotated[Path, typer.Option(help="Folder for the adaptation and its state.")],
    steps: Annotated[
        int, typer.Option(help="Optimiser updates. Many more fit the bank's patients only.")
    ] = 200,
    preset: Annotated[str, typer.Option(envvar="VESSA_PRESET", help="Size of the model.")] = "nano",
    weights: Annotated[
        Path | None,
        typer.Option(envvar="VESSA_WEIGHTS", help="Folder of weights. Default: shipped."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 for all cores.")] = 0,
) -> None:
    """Fit VESSA to your own template bank, in a few minutes.

    Trains decoder, memory and projector on strongly augmented pairs of the bank's
    templates, and writes a small file for `serve --adaptation`.
    """
    import torch

    from vessa_server.api.settings import SHIPPED_WEIGHTS
    from vessa_server.bank import TemplateBank
    from vessa_server.model.presets import preset as preset_config
    from vessa_server.training import adaptation

    if threads:
        torch.set_num_threads(threads)
    try:
        file = adaptation.adapt(
            weights or SHIPPED_WEIGHTS / preset,
            preset_config(preset),
            TemplateBank(bank),
            adaptation.adaptation_config(steps, seed),
            out,
        )
    except (ValueError, OSError) as error:
        raise _fail(str(error)) from None
    console.print(
        f"Adapted: {file}. Use it: vessa-server serve --bank {bank} --adaptation {file}",
        highlight=False,
    )


@app.command()
def assemble(
    preset: Annotated[str, typer.Option(help="base or large.")],
    sam2: Annotated[Path, typer.Option(help="SAM 2.1 checkpoint: .pt or .safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder for the joined weights.")],
    qwen: Annotated[str | None, typer.Option(help="Folder or hub id. [the preset's]")] = None,
) -> None:
    """Join published Qwen3-VL and SAM 2.1 checkpoints into weights for `serve` and `train`.

    The matching head and the <SEG> projector are in neither; they are random until trained.
    """
    from vessa_server.model import checkpoint
    from vessa_server.model.presets import preset as preset_config

    try:
        config = preset_config(preset)
        source = qwen or config.vlm.pretrained
        if source is None:
            raise ValueError(
                f"preset {preset!r}: has no published checkpoints, expected base or large"
            )
        checkpoint.save(checkpoint.assemble(config, source, sam2), out)
    except ValueError as error:
        raise _fail(str(error)) from None
    console.print(f"Weights in {out}. The matching head and projector are not trained yet.")


if __name__ == "__main__":
    app()
