"""How long each step of the model takes, and what it computes and moves.

    python benchmarks/model_speed.py --threads 1 2 --variants
    python benchmarks/model_speed.py --preset base --device cuda --dtype bfloat16

Seconds of each step, median and least, for ``--images`` images of ``--classes`` classes with
``--templates`` templates each, its parameters, FLOPs, and bytes: of the parameters it reads, and of
all that its operations read and write, which fusing them would save. ``nano`` has the shipped
weights, other presets random ones of the published sizes. ``--variants`` times encode and decode in
channels_last, in bf16 and compiled as well. Writes
``benchmarks/results/model_speed_PRESET_DEVICE.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from acdc import RESULTS, circumstances
from vessa_client import files
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.model import checkpoint
from vessa_server.model.preprocess import normalise, vlm_view
from vessa_server.model.presets import PRESETS, preset
from vessa_server.model.reasoner import PromptPrefix
from vessa_server.model.vessa import Conditioned, ImageFeatures, TemplateFeatures, Vessa

WARM_UP = 3
VARIANTS = ("plain", "channels_last", "bf16 autocast", "bf16 weights", "compiled")


@dataclass(frozen=True)
class Cost:
    """What a step computes and moves."""

    parameters: int
    parameter_bytes: int
    moved_bytes: int
    flops: int


@dataclass(frozen=True)
class Times:
    """Seconds of a step: of most calls, and of one that nothing else on the machine delayed."""

    median: float
    least: float


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that operations read and write, and the parameters among what they read."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = 0
        self.read: dict[int, Tensor] = {}
        self._parameters = {p.untyped_storage().data_ptr(): p for p in model.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for tensor in read:
            pointer = tensor.untyped_storage().data_ptr()
            if pointer in self._parameters:
                self.read[pointer] = self._parameters[pointer]
        if not func.is_view:
            written = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            self.moved += sum(_bytes(tensor) for tensor in (*read, *written))
        return result


class Steps:
    """The steps on random images, each on the results of those before it."""

    def __init__(self, model: Vessa, images: int, classes: int, templates: int) -> None:
        self.model = model
        config, device = model.config, model.student_embedding.device
        generator = torch.Generator().manual_seed(0)

        def canvases(count: int) -> Tensor:
            side = config.image_size
            return torch.rand(count, 3, side, side, generator=generator).to(device)

        unit = canvases(images)
        self.canvas = normalise(unit, config)
        self.view = vlm_view(unit, config.vlm.image_size)
        of_templates = canvases(templates)
        self.template_features = model.encode_image(normalise(of_templates, config), None)
        self.masks = (of_templates[:, :1] > 0.5).float()
        pairs = images * classes
        self.image_P = torch.arange(images, device=device).repeat_interleave(classes)
        self.features: ImageFeatures = self.encode_and_see()
        rows = torch.arange(templates, device=device).repeat(pairs)
        self.templates: TemplateFeatures = self.describe().select(rows)
        self.prefix: PromptPrefix = self.read_template().select(
            torch.zeros(pairs, dtype=torch.long, device=device)
        )
        matched, reasoned = self.match(), self.reason()
        self.conditioned = Conditioned(
            top_PDHW=self.remember(),
            prior_P1HW=matched.prior_P1HW,
            points_PN2=matched.points_PN2,
            labels_PN=matched.labels_PN,
            seg_P1D=reasoned.seg_P1D,
            seg_map_P1HW=reasoned.seg_map_P1HW,
        )
        half = config.image_size // 2
        self.student_P1HW = torch.rand(pairs, 1, half, half, generator=generator).to(device)
        self.has_student_P = torch.ones(pairs, dtype=torch.bool, device=device)

    def all(self) -> dict[str, Callable[[], Any]]:
        """By name, in their order."""
        return {
            "encode": self.encode,
            "encode and see": self.encode_and_see,
            "describe templates": self.describe,
            "match": self.match,
            "remember": self.remember,
            "read template": self.read_template,
            "reason": self.reason,
            "decode": self.decode,
            "decode with student": self.decode_with_student,
        }

    def encode(self) -> ImageFeatures:
        """The images, without the VLM's view."""
        return self.model.encode_image(self.canvas, None)

    def encode_and_see(self) -> ImageFeatures:
        """The images, with the VLM's view."""
        return self.model.encode_image(self.canvas, self.view)

    def describe(self) -> TemplateFeatures:
        """The templates of one class."""
        return self.model.encode_template(self.template_features, self.masks)

    def match(self) -> Any:
        """Step 2 of all pairs."""
        return self.model.match(self.features, self.image_P, self.templates)

    def remember(self) -> Tensor:
        """Step 4 of all pairs."""
        return self.model.remember(self.features, self.image_P, self.templates)

    def read_template(self) -> PromptPrefix:
        """Prefix of one template and class: its overlay seen, and read with the text."""
        reasoner = self.model.reasoner
        ids, mask = reasoner.tokenize(["Segment the heart, the red area of another image."])
        return reasoner.prefix(ids, mask, reasoner.see(self.view[:1]))

    def reason(self) -> Any:
        """Step 3 of all pairs."""
        return self.model.reason(self.prefix, self.features, self.image_P)

    def decode(self) -> Any:
        """Step 5 of all pairs."""
        return self.model.decode(self.features, self.image_P, self.conditioned, None, None)

    def decode_with_student(self) -> Any:
        """Step 5 of all pairs, with student masks."""
        return self.model.decode(
            self.features, self.image_P, self.conditioned, self.student_P1HW, self.has_student_P
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--templates", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--variants", action="store_true", help="other layouts and precisions too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    start = time.perf_counter()
    model = _model(arguments)
    loading = time.perf_counter() - start
    steps = Steps(model, arguments.images, arguments.classes, arguments.templates)
    costs = {name: cost(model, step) for name, step in steps.all().items()}
    calls = steps.all() | (_variants(arguments) if arguments.variants else {})
    times: dict[int, dict[str, Times]] = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        times[threads] = timed(calls, arguments.repeats, model.student_embedding.device)
    _print(costs, times)
    plain = {k: v for k, v in vars(arguments).items() if isinstance(v, int | str | list)}
    report = {
        **circumstances(**plain),
        "device_name": _device_name(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loading_seconds": loading,
        "steps": {name: asdict(found) for name, found in costs.items()},
        "seconds": {
            str(threads): {name: asdict(found) for name, found in by_name.items()}
            for threads, by_name in times.items()
        },
    }
    kind = torch.device(arguments.device).type
    file = arguments.out / f"model_speed_{arguments.preset}_{kind}.json"
    files.write_text(file, json.dumps(report, indent=2) + "\n")
    console.print(f"Results {file}", highlight=False)


def cost(model: Vessa, step: Callable[[], Any]) -> Cost:
    """Count what ``step`` computes and moves."""
    with FlopCounterMode(display=False, custom_mapping=_uncounted()) as flops:
        step()
    with Traffic(model) as traffic:
        step()
    read = traffic.read.values()
    return Cost(
        parameters=sum(p.numel() for p in read),
        parameter_bytes=sum(p.nbytes for p in read),
        moved_bytes=traffic.moved,
        flops=flops.get_total_flops(),
    )


def timed(
    steps: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, Times]:
    """Times of ``steps``, which take turns: what else the machine does meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(WARM_UP + repeats):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            if index >= WARM_UP:
                taken[name].append(time.perf_counter() - start)
    return {name: Times(statistics.median(all_), min(all_)) for name, all_ in taken.items()}


def _variants(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Encode and decode in other layouts and precisions."""
    found: dict[str, Callable[[], Any]] = {}
    for name in VARIANTS:
        model = _model(arguments, torch.bfloat16 if name == "bf16 weights" else None)
        steps = Steps(model, arguments.images, arguments.classes, arguments.templates)
        if name == "channels_last":
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    module.to(memory_format=torch.channels_last)
            steps.canvas = steps.canvas.contiguous(memory_format=torch.channels_last)
        for step in (steps.encode, steps.decode_with_student):
            call: Callable[[], Any] = torch.compile(step) if name == "compiled" else step
            if name == "bf16 autocast":
                kind = torch.device(arguments.device).type
                call = torch.autocast(kind, torch.bfloat16)(call)
            found[f"{step.__name__}, {name}"] = call
    return found


def _model(arguments: argparse.Namespace, dtype: torch.dtype | None = None) -> Vessa:
    config = preset(arguments.preset)
    wanted: dict[str, Any] = {
        "device": arguments.device,
        "dtype": dtype or getattr(torch, arguments.dtype),
    }
    shipped = SHIPPED_WEIGHTS / arguments.preset
    if shipped.is_dir():
        return checkpoint.load(config, shipped, **wanted).requires_grad_(False)
    return checkpoint.random(config, **wanted).requires_grad_(False)


def _uncounted() -> dict[Any, Any]:
    """FLOPs of operations that PyTorch's counter does not know."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        batch, heads, queries, features = query
        return int(2 * batch * heads * queries * key[2] * (features + value[3]))

    def product(matrix: Any, *_: Any, **__: Any) -> int:
        return int(2 * matrix[0] * matrix[1])

    aten = torch.ops.aten
    return {aten._scaled_dot_product_flash_attention_for_cpu: attention, aten.mv: product}


def _bytes(tensor: Tensor) -> int:
    """Of the elements that there are: an expanded axis is read once."""
    elements = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= length if stride else min(length, 1)
    return elements * tensor.element_size()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(model: Vessa) -> str:
    device = model.student_embedding.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def _print(costs: dict[str, Cost], times: dict[int, dict[str, Times]]) -> None:
    table = Table("Step", "MB moved", "GFLOP", *(f"ms at {n} (least)" for n in times), box=None)
    for name in next(iter(times.values())):
        found = costs.get(name)
        row = (
            ["", ""]
            if found is None
            else [_short(found.moved_bytes / 1e6), _short(found.flops / 1e9)]
        )
        for by_name in times.values():
            taken = by_name[name]
            row.append(f"{_short(1e3 * taken.median)} ({_short(1e3 * taken.least)})")
        table.add_row(name, *row)
    console.print(table)


def _short(number: float) -> str:
    return f"{number:.3g}"


if __name__ == "__main__":
    main()
