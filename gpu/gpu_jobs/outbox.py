"""The folder that comes back: at every moment a whole set of files that go together."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from gpu_jobs.manifest import sha256


class Outbox:
    """Copies what a run has written to the folder that comes back, and says which files.

    A job may be killed at any moment; each file is replaced at once, ``result.json`` last.
    """

    def __init__(
        self, out: Path, run: Path, names: tuple[str, ...], result: dict[str, Any]
    ) -> None:
        """``names`` of files in ``run`` are copied when they change; ``result`` is written."""
        self.out = out
        self.run = run
        self.names = names
        self.result = result
        self._seen: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def sync(self) -> None:
        """Copy what has changed."""
        with self._lock:
            files = self.result.setdefault("files", {})
            for name in self.names:
                source = self.run / name
                if not source.is_file():
                    continue
                status = source.stat()
                version = (status.st_mtime_ns, status.st_size)
                if self._seen.get(name) == version:
                    continue
                partial = self.out / f"{name}.part"
                shutil.copyfile(source, partial)
                files[name] = sha256(partial)
                os.replace(partial, self.out / name)
                self._seen[name] = version
            self._write("result.json", json.dumps(self.result, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        partial = self.out / f"{name}.part"
        partial.write_text(text)
        os.replace(partial, self.out / name)
