"""What the commands share: options, the connection, and errors as one line."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from vessa_client._errors import VessaError
from vessa_client._options import ClientOptions
from vessa_client.console import explained, print_error

if TYPE_CHECKING:
    from vessa_client import VessaClient

CERTIFICATES_VARIABLE = "VESSA_ROOT_CERTIFICATES"
P = ParamSpec("P")
R = TypeVar("R")

Server = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="VESSA_SERVER",
        help="host:port of the gRPC server; over TLS where VESSA_ROOT_CERTIFICATES is a PEM file.",
    ),
]
Token = Annotated[
    str | None, typer.Option(envvar="VESSA_TOKEN", help="Bearer token, printable ASCII.")
]
Bank = Annotated[
    str,
    typer.Option(
        "--bank", envvar="VESSA_CLIENT_BANK", help="Name of the bank. Default: the server's."
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        "-c",
        help="Class to segment, NAME, or VALUE=NAME for its value in label maps; repeat. "
        "Default: all.",
    ),
]
LabelFiles = Annotated[
    Path | None,
    typer.Argument(help="Label file, or a folder of them. Default: NAME_gt beside the image."),
]
LabelClasses = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        "-c",
        help='Label 1, 2, ..., in order: "name" or "name: description"; or by its value: "3=name", '
        "then other values are background.",
    ),
]
LabelNames = Annotated[
    Path | None,
    typer.Option(help="File that names labels: ITK-SNAP's descriptions, or dataset.json."),
]
LabelsSuffix = Annotated[
    str, typer.Option(help="What the names of label files have after the image's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Axis = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2,
        help="Slicing axis: 0 left-right, 1 back-front, 2 upwards. Default: as acquired.",
    ),
]
WindowText = Annotated[
    str,
    typer.Option(
        "--window",
        help="Intensities that are seen: soft, lung, bone, brain, LOW:HIGH, or none for "
        "percentiles of each slice. auto: of CT the bank's, else soft (-160:240); else none.",
    ),
]
Frame = Annotated[
    int | None,
    typer.Option(
        min=0, help="Which volume of a file or series that holds several: a time, an echo."
    ),
]
Alone = Annotated[
    bool,
    typer.Option(
        "--alone",
        help="Look at each slice of a volume by itself: for structures that are not in the same "
        "place all over it.",
    ),
]


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Errors of server and files as one line, and exit code 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from vessa_client.files import FileError

        return explained(VessaError, FileError, OSError)(command)(*args, **kwargs)

    return run


def project_defaults() -> Mapping[str, object]:
    """Options as ``vessa.toml`` of the folder, or of the nearest above it, has them."""
    from vessa_client import project

    file = project.find(Path.cwd())
    if file is None:
        return {}
    try:
        found = project.read(file)
    except project.ProjectError as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    return {name: value for name, value in vars(found).items() if value}


def named(bank: str) -> str:
    """A bank in a sentence."""
    return f"bank {bank!r}" if bank else "the default bank"


def connect(server: str, token: str | None, bank: str = "") -> VessaClient:
    """A client, with what the environment says of certificates."""
    from vessa_client import VessaClient

    certificates = os.environ.get(CERTIFICATES_VARIABLE)
    try:
        options = ClientOptions(
            token=token,
            bank=bank,
            root_certificates=Path(certificates) if certificates else None,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--token (VESSA_TOKEN)") from error
    return VessaClient(server, options)
