"""One-shot Dice on ACDC: VESSA, without rules or parts of it, fitted to the bank, and rivals.

    python benchmarks/acdc_one_shot.py --data DATA/acdc --split val --cases 1 --seeds 0 1 2

Templates are all annotated slices of the 1-case (patient099) or 3-case split. Scores are 3D, for
each structure, over the volumes of the split, at native in-plane size; mean and standard
deviation over patients. Methods that train do so for each seed; their table shows the mean over
seeds. ``--adapted`` keeps trained models, so that another split is scored with the same ones.
``--parts`` measures some rows only. Writes
``benchmarks/results/acdc_one_shot_<split>_<cases>.json``; rows that are there and were not measured
again stay, each with its commit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.table import Table

import acdc
from ablations import RULES, settings, without
from acdc import Segment
from baselines import copy_mask, matched_template, register
from heart import NAMES
from ssl_trainer.data.cases import Case
from vessa_client import NotFoundError, UInt8Array, files
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.bank import TemplateBank
from vessa_server.engine import VessaEngine
from vessa_server.engine_settings import EngineSettings
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.model.vessa import Vessa
from vessa_server.training import adaptation

Result = dict[str, object]
ALL_RULES = "all rules"
PARTS = ["rivals", "rules", "ablations", "fitted"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    with open_runner(arguments) as runner:
        cases = runner.cases
        results: dict[str, Result] = {}
        for name, segment in runner.methods().items():
            results[name] = acdc.evaluate(name, segment, cases)
        if "rules" in arguments.parts:
            results |= runner.rules(cases)
        if "ablations" in arguments.parts:
            results |= runner.ablations(cases)
        if "fitted" in arguments.parts:
            results |= runner.fitted(cases)
    commit = acdc.circumstances()["commit"]
    file = acdc.results_file("acdc_one_shot", arguments)
    known = json.loads(file.read_text())["results"] if file.is_file() else {}
    results = known | {name: {**row, "commit": commit} for name, row in results.items()}
    show(results, f"Dice, {arguments.split}, {arguments.cases} labelled case(s)")
    acdc.write_results("acdc_one_shot", arguments, {"results": results})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which models, bank and patients."""
    parser.add_argument("--data", type=Path, required=True, help="folder of ACDC")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS / "nano")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--cases", type=int, choices=sorted(acdc.LABELLED), default=1)
    parser.add_argument("--top-k", type=int, default=7)
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of methods that train")
    parser.add_argument("--adapt-steps", type=int, default=adaptation.STEPS)
    parser.add_argument("--adapted", type=Path, help="folder that keeps what was trained")


@contextlib.contextmanager
def open_runner(arguments: argparse.Namespace) -> Iterator[Runner]:
    """Methods on the bank that the arguments ask for."""
    split = acdc.split(arguments.data, arguments.cases)
    with tempfile.TemporaryDirectory() as scratch:
        bank = TemplateBank(Path(scratch))
        acdc.fill(bank, split.labelled)
        cases = getattr(split, arguments.split)
        yield Runner(arguments, bank, cases, arguments.adapted or Path(scratch))


class Runner:
    """The methods on one bank."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        bank: TemplateBank,
        cases: tuple[Case, ...],
        folder: Path,
    ) -> None:
        self.arguments = arguments
        self.bank = bank
        self.cases = cases
        self.folder = folder
        self.digest = checkpoint.digest(arguments.weights)

    def model(self) -> Vessa:
        """The weights as shipped."""
        return checkpoint.load(preset("nano"), self.arguments.weights)

    def engine(self, model: Vessa, settings: EngineSettings | None = None) -> VessaEngine:
        """A fresh engine: nothing that another variant computed is reused."""
        return acdc.new_engine(model, self.digest, self.bank, settings)

    def one_shot(self, model: Vessa, rules: str = ALL_RULES) -> Segment:
        """VESSA's label maps, with all rules of its policy or some of them."""
        engine = self.engine(model, settings(rules))
        return lambda volume: acdc.ask(engine, volume, top_k=self.arguments.top_k)

    def methods(self) -> dict[str, Segment]:
        """VESSA as shipped, and rivals that do not train."""
        methods = {"VESSA one-shot": self.one_shot(self.model())}
        if "rivals" in self.arguments.parts:
            engine = self.engine(self.model())
            methods["copy of the matched template"] = acdc.each_slice(
                lambda image: copy_mask(matched_template(engine, image, NAMES), image)
            )
            methods["registration of the matched template"] = acdc.each_slice(
                lambda image: register(matched_template(engine, image, NAMES), image)
            )
        return methods

    def rules(self, cases: tuple[Case, ...]) -> dict[str, Result]:
        """Each rule of the engine off in turn, and all of them."""
        return {
            name: acdc.evaluate(name, self.one_shot(self.model(), name), cases)
            for name in RULES
            if name != ALL_RULES
        }

    def ablations(self, cases: tuple[Case, ...]) -> dict[str, Result]:
        """Each part off in turn, masked."""
        results: dict[str, Result] = {}
        for part, name in (
            ("matching", "without dense matching"),
            ("memory", "without memory"),
            ("prototype", "prototype matching alone"),
        ):
            model = self.model()
            with without(model, part):
                results[name] = acdc.evaluate(name, self.one_shot(model), cases)
        engine, rng = self.engine(self.model()), np.random.default_rng(0)
        ids = [t.template_id for t in self.bank.snapshot().templates]

        def random_templates(volume: files.ImageFile) -> list[UInt8Array]:
            top_k = min(self.arguments.top_k, len(ids))
            chosen = tuple(str(i) for i in rng.choice(ids, size=top_k, replace=False))
            while True:
                try:
                    most = self.arguments.top_k
                    return acdc.ask(engine, volume, top_k=most, template_ids=chosen)
                except NotFoundError:  # none of them shows one of the structures
                    chosen = (*chosen, str(rng.choice(ids)))

        name = "without retrieval (random templates)"
        return results | {name: acdc.evaluate(name, random_templates, cases)}

    def fitted(self, cases: tuple[Case, ...]) -> dict[str, Result]:
        """VESSA fitted to the bank, for each seed."""
        name, found = "VESSA fitted to the bank", []
        for seed in self.arguments.seeds:
            adapted, seconds = self.adapted(seed)
            score = acdc.evaluate(f"{name}, seed {seed}", self.one_shot(adapted), cases)
            found.append({**score, "training_seconds": seconds})
        return {name: over_seeds(found)} if found else {}

    def adapted(self, seed: int) -> tuple[Vessa, float]:
        """The fitted model, and the seconds that fitting took."""
        out = self.folder / f"adapted_{self.arguments.cases}_{seed}"
        note = out / "seconds.json"
        if not note.is_file():
            start = time.perf_counter()
            adaptation.adapt(
                self.arguments.weights,
                preset("nano"),
                self.bank,
                adaptation.adaptation_config(self.arguments.adapt_steps, seed),
                out,
            )
            files.write_text(note, json.dumps(time.perf_counter() - start))
        model = self.model()
        checkpoint.apply_delta(model, out / checkpoint.DELTA_FILE, self.digest)
        return model, float(json.loads(note.read_text()))


def over_seeds(scores: list[Result]) -> Result:
    """Mean over seeds of the patients' scores; deviation over patients, and over seeds."""
    names = list(scores[0]["patients"])  # type: ignore[call-overload]
    table = np.array([[s["patients"][n] for n in names] for s in scores])  # type: ignore[index]
    by_patient = table.mean(axis=0)
    seeds = table.mean(axis=(1, 2))
    return {
        "mean": by_patient.mean(axis=0).tolist(),
        "sd": by_patient.std(axis=0, ddof=1).tolist(),
        "mean_of_structures": float(table.mean()),
        "sd_over_seeds": float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
        "seeds": scores,
    }


def show(results: dict[str, Result], title: str) -> None:
    """Print the table."""
    table = Table("", *NAMES, "mean", title=title)
    for name, found in results.items():
        means, deviations = found["mean"], found["sd"]
        assert isinstance(means, list)
        assert isinstance(deviations, list)
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(means, deviations, strict=True)]
        table.add_row(name, *cells, f"{found['mean_of_structures']:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
