"""Weights in safetensors: the shipped presets', and published SAM 2 checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load; nothing is unpickled here
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vessa_client import files
from vessa_server.model import prompts
from vessa_server.model import tokenizer as tokenizers
from vessa_server.model.config import VessaConfig
from vessa_server.model.published import ARCHITECTURES
from vessa_server.model.skeleton import dtypes, fill_with_noise, finish, skeleton
from vessa_server.model.vessa import Vessa

WEIGHTS_FILE, TOKENIZER_FILE = "model.safetensors", "tokenizer.json"
VLM_FILE = "vlm_config.json"
DELTA_FILE = "adaptation.safetensors"
FILES = (WEIGHTS_FILE, TOKENIZER_FILE, VLM_FILE)
# Parts of a SAM 2 video checkpoint that a reference-guided image model has no use for.
UNUSED_SAM2_PREFIXES = (
    "obj_ptr_proj",
    "obj_ptr_tpos_proj",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "no_mem_embed",
    "no_mem_pos_enc",
    "mask_downsample",
)


class CheckpointError(ValueError):
    """A weights file does not fit the configuration, or cannot be read."""


def save(
    model: Vessa, folder: Path, *, half: bool = True, notes: dict[str, str] | None = None
) -> Path:
    """Write weights and tokenizer to ``folder`` atomically; return the weights file.

    ``notes`` are kept in the file beside the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "reasoner.vlm.lm_head.weight" or not _is_tied(model)
    }
    file = folder / WEIGHTS_FILE
    described = {"config": json.dumps(model.config.to_dict()), **(notes or {})}
    write_safetensors(file, tensors, described)
    backend = getattr(model.reasoner.tokenizer, "backend_tokenizer")  # noqa: B009
    files.write_text(folder / TOKENIZER_FILE, backend.to_str(pretty=True))
    files.write_text(folder / VLM_FILE, model.reasoner.vlm.config.to_json_string())
    return file


def notes(folder: Path) -> dict[str, str]:
    """What :func:`save` was told to keep beside the weights in ``folder``."""
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as stream:
        found: dict[str, str] = stream.metadata() or {}
    return found


def load(
    config: VessaConfig,
    folder: Path,
    *,
    partly: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Vessa:
    """Build the model of ``config`` and fill it from ``folder``.

    Args:
        config: a preset.
        folder: what :func:`save` wrote.
        partly: leave random what the folder's weights lack.
        device: where the weights go, one by one, as they are read.
        dtype: float32, bfloat16 or float16; scalars and buffers stay in float32.

    Raises:
        CheckpointError: a file is missing, or a tensor is missing or has another shape.
    """
    return _load(config, folder, None, partly=partly, device=device, dtype=dtype)


def load_with_digest(
    config: VessaConfig,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Vessa, str]:
    """:func:`load`, and :func:`digest` of what was loaded, in one pass over the file."""
    weights = hashlib.sha256()
    model = _load(config, folder, weights.update, partly=False, device=device, dtype=dtype)
    return model, _digest(weights.digest(), folder)


def random(
    config: VessaConfig,
    architecture: Qwen3VLConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Vessa:
    """The model of ``config`` with random weights, made on ``device``: to measure speed with.

    ``architecture`` of the VLM is by default that of the published checkpoint that the preset
    names, with this project's tokenizer.
    """
    if architecture is None and config.vlm.pretrained is not None:
        architecture = ARCHITECTURES[config.vlm.pretrained]()
    words = tokenizers.build(prompts.corpus([]), config.vlm.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = skeleton(config, words, architecture)
    fill_with_noise(model, torch.device(device), dtype, seed)
    return model


def assemble(config: VessaConfig, qwen: str, sam2: Path) -> Vessa:
    """Join published checkpoints of Qwen3-VL and SAM 2 into one model.

    What neither has (matching head, ``<SEG>`` projector) is random until it is trained.

    Args:
        config: a preset.
        qwen: folder or hub id of a Qwen3-VL checkpoint.
        sam2: SAM 2.1 checkpoint, ``.pt`` or safetensors.

    Raises:
        CheckpointError: a checkpoint is missing or of another size.
    """
    try:
        words = tokenizers.load_pretrained(qwen)
        published = Qwen3VLForConditionalGeneration.from_pretrained(qwen, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"qwen checkpoint {qwen}: cannot be read: {error}") from error
    embeddings: Any = published.get_input_embeddings()
    if len(words) > embeddings.num_embeddings:
        published.resize_token_embeddings(len(words))
    model = Vessa(config, words, published.config)
    model.reasoner.vlm.load_state_dict(published.state_dict())
    load_sam2(model, sam2)
    return model.eval()


def fill(
    model: nn.Module,
    tensors: dict[str, Tensor],
    file: Path,
    *,
    partly: bool = False,
    assign: bool = False,
) -> None:
    """Copy ``tensors`` into ``model``, or put them there.

    Args:
        model: to be filled.
        tensors: by the names of the model's.
        file: what they are from.
        partly: the model may have more than they.
        assign: they become the model's own, in their dtype and on their device.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or has no place.
    """
    try:
        result = model.load_state_dict(tensors, strict=False, assign=assign)
    except RuntimeError as error:
        raise CheckpointError(f"weights: {file} is for another configuration: {error}") from error
    missing = [name for name in result.missing_keys if not name.endswith("lm_head.weight")]
    if (missing and not partly) or result.unexpected_keys:
        raise CheckpointError(
            f"weights: {file} is for another configuration: "
            f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}"
        )


def read_safetensors(
    file: Path,
    *,
    device: str | torch.device = "cpu",
    dtypes: Mapping[str, torch.dtype] | None = None,
    hashed: Callable[[bytes | memoryview], None] | None = None,
) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Args:
        file: to read, in one pass.
        device: where each tensor goes as it is read.
        dtypes: of those with floating point, by name; float32 where it says nothing.
        hashed: gets all bytes of the file, in their order.
    """
    known = dtypes or {}
    tensors = {}
    try:
        # The file has no gaps: its bytes are the header's and, in this order, the tensors'.
        with safe_open(file, framework="pt") as stream:
            if hashed is not None:
                hashed(_header(file))
            for name in stream.offset_keys():
                tensor = stream.get_tensor(name)  # of the file itself, as long as it is there
                if hashed is not None:
                    hashed(tensor.reshape(-1).view(torch.uint8).numpy().data)
                floating = tensor.is_floating_point()
                dtype = known.get(name, torch.float32) if floating else tensor.dtype
                tensors[name] = tensor.to(device, dtype, copy=True)
    except Exception as error:  # safetensors raises its own untyped errors
        raise CheckpointError(f"weights: {file} cannot be read: {error}") from error
    return tensors


def load_sam2(model: Vessa, file: Path) -> None:
    """Fill the SAM 2 parts of ``model`` from a published checkpoint, ``.pt`` or safetensors.

    ``.pt`` files are read with ``weights_only``: tensors and nothing else are unpickled.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    if file.suffix == ".safetensors":
        tensors = read_safetensors(file)
    else:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)["model"]
        except (OSError, KeyError, RuntimeError, UnpicklingError) as error:
            raise CheckpointError(f"sam2 checkpoint {file}: cannot be read: {error}") from error
    used = {n: t for n, t in tensors.items() if not n.startswith(UNUSED_SAM2_PREFIXES)}
    expected = {name for name in model.state_dict() if _is_sam2(name)}
    if set(used) != expected:
        raise CheckpointError(
            f"sam2 checkpoint {file}: missing {sorted(expected - set(used))[:3]}, "
            f"unexpected {sorted(set(used) - expected)[:3]}"
        )
    try:
        model.load_state_dict(used, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"sam2 checkpoint {file}: {error}") from error


def save_delta(tensors: dict[str, Tensor], base: str, folder: Path) -> Path:
    """Write tensors that replace those of the weights with digest ``base``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / DELTA_FILE
    halves = {n: t.detach().to(torch.float16).contiguous() for n, t in tensors.items()}
    write_safetensors(file, halves, {"base": base})
    return file


def apply_delta(model: Vessa, file: Path, base: str) -> str:
    """Put the tensors of a delta into ``model``, whose weights have digest ``base``.

    Returns:
        The digest of weights and delta together.

    Raises:
        CheckpointError: the delta is damaged, or belongs to other weights.
    """
    tensors = read_safetensors(file)
    with safe_open(file, framework="pt") as stream:
        belongs_to = (stream.metadata() or {}).get("base")
    if belongs_to != base:
        raise CheckpointError(
            f"adaptation: {file} belongs to other weights; run `vessa-server adapt` again"
        )
    known = set(model.state_dict())
    if not set(tensors) <= known:
        raise CheckpointError(f"adaptation: {file} is for another configuration")
    fill(model, tensors, file, partly=True)
    return hashlib.sha256(base.encode() + file.read_bytes()).hexdigest()


def digest(folder: Path) -> str:
    """sha256 of weights, tokenizer and architecture: the identity in answers and cache keys."""
    with (folder / WEIGHTS_FILE).open("rb") as stream:
        return _digest(hashlib.file_digest(stream, "sha256").digest(), folder)


def write_safetensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors atomically: a temporary file, synced and renamed."""
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        partial = Path(scratch) / file.name
        save_file(tensors, partial, metadata=metadata)
        partial.chmod(0o644)  # safetensors makes files that only their owner can read
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, file)


def _load(
    config: VessaConfig,
    folder: Path,
    hashed: Callable[[bytes | memoryview], None] | None,
    *,
    partly: bool,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Vessa:
    for name in FILES:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"weights: no file {folder / name}; give --weights, train with "
                "`vessa-server train`, or join published checkpoints with `vessa-server assemble`"
            )
    words = tokenizers.load(folder / TOKENIZER_FILE)
    architecture = Qwen3VLConfig.from_json_file(folder / VLM_FILE)
    # What a file may lack needs values of its own.
    model = (Vessa if partly else skeleton)(config, words, architecture).eval()
    file = folder / WEIGHTS_FILE
    tensors = read_safetensors(file, device=device, dtypes=dtypes(model, dtype), hashed=hashed)
    fill(model, tensors, file, partly=partly, assign=True)
    finish(model, torch.device(device))
    return model


def _header(file: Path) -> bytes:
    """Length and text of what a safetensors file says of its tensors."""
    with file.open("rb") as stream:
        length = stream.read(8)
        return length + stream.read(int.from_bytes(length, "little"))


def _digest(weights: bytes, folder: Path) -> str:
    state = hashlib.sha256(weights)
    for name in FILES[1:]:
        state.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return state.hexdigest()


def _is_sam2(name: str) -> bool:
    return name.startswith(
        ("image_encoder.", "memory_attention.", "memory_encoder.", "sam_", "maskmem_tpos_enc")
    )


def _is_tied(model: Vessa) -> bool:
    vlm: Any = model.reasoner.vlm
    tied: bool = vlm.lm_head.weight.data_ptr() == vlm.get_input_embeddings().weight.data_ptr()
    return tied
