"""Banks by name: one folder holds the default bank and, in ``banks/``, the named ones."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from vessa_client import InvalidRequestError, NotFoundError
from vessa_server.bank.template_bank import TemplateBank

BANKS_FOLDER = "banks"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Banks:
    """The default bank, whose name is empty, and named ones. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Open the default bank; named ones are opened when they are asked for.

        Raises:
            BankError: the default bank cannot be opened.
        """
        self.folder = folder
        self._lock = threading.Lock()
        self._opened = {"": TemplateBank(folder)}

    def names(self) -> tuple[str, ...]:
        """Names of the named banks, sorted; the default bank is not among them."""
        try:
            entries = tuple((self.folder / BANKS_FOLDER).iterdir())
        except FileNotFoundError:
            return ()
        return tuple(sorted(e.name for e in entries if _NAME.fullmatch(e.name) and e.is_dir()))

    def get(self, name: str, *, create: bool = False) -> TemplateBank:
        """The bank of that name; always the same object while its folder is there.

        Args:
            name: of the bank; empty for the default one.
            create: make it where there is none.

        Raises:
            InvalidRequestError: it cannot be a name.
            NotFoundError: there is none of that name.
            BankError: it is damaged or cannot be made.
        """
        if not name:
            return self._opened[""]
        if _NAME.fullmatch(name) is None:
            raise InvalidRequestError(
                f"bank: {name[:80]!r}, expected 1 to 64 of a-z, 0-9, '.', '_' and '-', "
                "the first a letter or digit; empty for the default bank",
                field="bank",
            )
        folder = self.folder / BANKS_FOLDER / name
        with self._lock:
            if not folder.is_dir():
                self._opened.pop(name, None)
                if not create:
                    raise self._unknown(name)
            if name not in self._opened:
                self._opened[name] = TemplateBank(folder)
            return self._opened[name]

    def opened(self) -> dict[str, TemplateBank]:
        """Those that were asked for, by name; the default one's is empty."""
        with self._lock:
            return dict(self._opened)

    def create(self, name: str) -> TemplateBank:
        """The bank of that name, made where there is none; see :meth:`get`."""
        return self.get(name, create=True)

    def _unknown(self, name: str) -> NotFoundError:
        known = "".join(f", {other!r}" for other in self.names())
        return NotFoundError(
            f"bank: no bank {name!r}, expected an empty name for the default bank{known}; "
            f"adding a template to {name!r} makes it",
            field="bank",
        )
