"""What VESSA makes of students' masks on ACDC, and whether its estimates of quality are true.

    python benchmarks/acdc_student_masks.py --data DATA/acdc --split val --cases 1 --seeds 0

Masks are corruptions of the truth at five levels of Dice, and a U-Net's predictions while it
learns from the labelled slices. VESSA as shipped and, with ``--seeds``, fitted to the bank with
the first of them. Writes ``benchmarks/results/acdc_student_masks_<split>_<cases>.json``.
"""

from __future__ import annotations

import argparse

import acdc
from acdc_one_shot import add_arguments, open_runner
from student_masks import LEVELS, by_bin, calibration, corrupted, early_predictions, repair
from vessa_client.console import console
from vessa_server.model.presets import preset


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--every", type=int, default=2, help="of the slices")
    arguments = parser.parse_args()
    top_k = arguments.top_k
    found: dict[str, object] = {}
    with open_runner(arguments) as runner:
        items = acdc.slices(runner.cases)[:: arguments.every]
        masks = {str(level): corrupted(items, level, seed=0) for level in LEVELS}
        early = by_bin(early_predictions(runner.bank, items, size=preset("nano").image_size))
        models = {"VESSA one-shot": runner.model()}
        if arguments.seeds:
            models["VESSA fitted to the bank"] = runner.adapted(arguments.seeds[0])[0]
        for name, model in models.items():
            engine = runner.engine(model)
            found[name] = {
                "calibration": calibration(engine, items, top_k),
                "corrupted_masks": {k: repair(engine, m, top_k) for k, m in masks.items()},
                "early_predictions": {k: repair(engine, m, top_k) for k, m in early.items() if m},
            }
            console.print(name, found[name])
    acdc.write_results("acdc_student_masks", arguments, {"student_masks": found})


if __name__ == "__main__":
    main()
