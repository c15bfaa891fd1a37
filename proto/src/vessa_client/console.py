"""What the project's commands share: errors as one line, and progress bars with an ETA."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

P = ParamSpec("P")
R = TypeVar("R")

console = Console()
errors = Console(stderr=True)


# Values of options that a command line takes where neither flags nor the environment name them.
Defaults = Callable[[], Mapping[str, object]]


def command_line(package: str, about: str, defaults: Defaults = dict) -> typer.Typer:
    """The commands of a package: with ``--version``, and its help where nothing is asked for."""

    def show(asked: bool) -> None:
        if asked:
            print_line(f"{package} {version(package)}")
            raise typer.Exit

    option = typer.Option(
        False, "--version", is_eager=True, callback=show, help="Show the version and exit."
    )

    def options(context: typer.Context, version: bool = option) -> None:
        context.default_map = _for_all(context.command, defaults())

    return typer.Typer(
        help=about,
        callback=options,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _for_all(command: object, values: Mapping[str, object]) -> dict[str, object]:
    """Defaults of a group's commands, which ignore those that they have no option for."""
    commands: Mapping[str, object] | None = getattr(command, "commands", None)
    if commands is None:
        return dict(values)
    return {name: _for_all(own, values) for name, own in commands.items()}


def print_line(message: str) -> None:
    """On standard output; brackets in it are no markup, and long paths stay whole."""
    console.print(shown(message), highlight=False, soft_wrap=True)


def shown(text: str) -> str:
    """As it is, also where brackets look like markup, or a file's name is not UTF-8."""
    return escape(text.encode(errors="replace").decode())


def print_error(message: str) -> None:
    """One line on standard error; brackets in it are no markup."""
    errors.print(f"[bold red]Error[/] {shown(message)}", highlight=False, soft_wrap=True)


def print_warning(message: str) -> None:
    """The same of what may be wrong."""
    errors.print(f"[bold yellow]Warning[/] {shown(message)}", highlight=False, soft_wrap=True)


def explained(*kinds: type[Exception]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Turn errors of these kinds into one line on standard error and exit code 1."""

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return command(*args, **kwargs)
            except kinds as error:
                print_error(str(error))
                raise typer.Exit(1) from None

        return run

    return decorate


def progress_bar() -> Progress:
    """A bar with count, elapsed time and ETA, and the task's ``note`` at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=errors,
    )
