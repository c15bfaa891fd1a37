"""The steps of the model one by one: what each computes and moves, and how long it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vessa_server.model.preprocess import normalise, vlm_view
from vessa_server.model.reasoner import PromptPrefix
from vessa_server.model.vessa import Conditioned, ImageFeatures, TemplateFeatures, Vessa

WARM_UP = 3


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


def cost(model: Vessa, step: Callable[[], Any]) -> Cost:
    """Count what ``step`` computes and moves."""
    counted = flops(step)
    with Traffic(model) as traffic:
        step()
    read = traffic.read.values()
    return Cost(
        parameters=sum(p.numel() for p in read),
        parameter_bytes=sum(p.nbytes for p in read),
        moved_bytes=traffic.moved,
        flops=counted,
    )


def flops(step: Callable[[], Any]) -> int:
    """Count what ``step`` computes."""
    with FlopCounterMode(display=False, custom_mapping=_uncounted()) as counter:
        step()
    return int(counter.get_total_flops())


def timed(
    steps: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, Times]:
    """Times of ``steps``, which take turns: what else the machine does meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(WARM_UP + repeats):
        for name, step in steps.items():
            wait(device)
            start = time.perf_counter()
            step()
            wait(device)
            if index >= WARM_UP:
                taken[name].append(time.perf_counter() - start)
    return {name: Times(statistics.median(all_), min(all_)) for name, all_ in taken.items()}


def wait(device: torch.device) -> None:
    """Until ``device`` has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
