"""The mean of two trainings' weights, of which one went on from the other.

    python benchmarks/average_weights.py BEFORE AFTER --out OUT [--share 0.5]

What a short training on more data gains is kept for the most part, and what it forgets comes back
(Wortsman et al., "Robust fine-tuning of zero-shot models", 2022). Notes and tokenizer are AFTER's.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from vessa_client.console import console
from vessa_server.model import checkpoint


def main() -> None:
    """Average, and say where the weights are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="of AFTER, 0 to 1")
    arguments = parser.parse_args()
    if not 0 <= arguments.share <= 1:
        parser.error(f"--share {arguments.share}, expected 0 to 1")
    one, other = (
        checkpoint.read_safetensors(folder / checkpoint.WEIGHTS_FILE)
        for folder in (arguments.before, arguments.after)
    )
    if {n: t.shape for n, t in one.items()} != {n: t.shape for n, t in other.items()}:
        raise SystemExit(f"{arguments.before} and {arguments.after} are of different models")
    mixed = {name: one[name].lerp(other[name], arguments.share).half() for name in other}
    arguments.out.mkdir(parents=True, exist_ok=True)
    notes = checkpoint.notes(arguments.after)
    checkpoint.write_safetensors(arguments.out / checkpoint.WEIGHTS_FILE, mixed, notes)
    for name in (checkpoint.TOKENIZER_FILE, checkpoint.VLM_FILE):
        shutil.copyfile(arguments.after / name, arguments.out / name)
    console.print(f"Weights in {arguments.out}", highlight=False)


if __name__ == "__main__":
    main()
