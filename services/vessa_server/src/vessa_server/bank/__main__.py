"""Command ``python -m vessa_server.bank FOLDER``: rebuild the index of a bank."""

from __future__ import annotations

import argparse
from pathlib import Path

from vessa_client.console import console, print_error
from vessa_server.bank import BankError, TemplateBank


def main() -> int:
    """Rebuild, and say what is in the bank now."""
    parser = argparse.ArgumentParser(
        prog="python -m vessa_server.bank",
        description="Rebuild the index of a template bank from its templates' folders. "
        "The index of now is kept as index.json.replaced.",
    )
    parser.add_argument("folder", type=Path, help="folder of the bank")
    parser.add_argument(
        "--class",
        dest="class_names",
        action="append",
        default=[],
        metavar="NAME",
        help="name of a class, for templates of older versions; may be repeated",
    )
    options = parser.parse_args()
    try:
        listing = TemplateBank.rebuild(options.folder, options.class_names)
    except BankError as error:
        print_error(str(error))
        return 2
    classes = ", ".join(definition.name for definition in listing.classes)
    console.print(
        f"{options.folder}: {len(listing.templates)} templates of {classes or 'no class'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
