"""Weights are read once, into a model that is the one built the ordinary way."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3VLConfig

from support import tiny_config, tiny_model
from vessa_server.model import checkpoint, published, tokenizer
from vessa_server.model.config import VessaConfig
from vessa_server.model.preprocess import normalise
from vessa_server.model.presets import preset
from vessa_server.model.skeleton import skeleton
from vessa_server.model.vessa import Conditioned, Vessa

NANO = Path(checkpoint.__file__).resolve().parents[3] / "weights" / "nano"


def _ordinary(config: VessaConfig, folder: Path) -> Vessa:
    """Built with random weights, which the file's are copied over."""
    words = tokenizer.load(folder / checkpoint.TOKENIZER_FILE)
    architecture = Qwen3VLConfig.from_json_file(folder / checkpoint.VLM_FILE)
    model = Vessa(config, words, architecture)
    stored = load_file(folder / checkpoint.WEIGHTS_FILE)
    model.load_state_dict({n: t.float() for n, t in stored.items()}, strict=False)
    return model.eval()


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers that are stored or not, and tensors that modules hold as attributes."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found |= dict(model.named_buffers(remove_duplicate=False))
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                found[f"{name}.{attribute}"] = value
    return found


@torch.no_grad()
def _outputs(model: Vessa) -> list[torch.Tensor]:
    """What each part makes of a random image as its own template."""
    config, image_P = model.config, torch.tensor([0])
    side, read = config.image_size, config.vlm.image_size
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, side, side, generator=generator)
    view = torch.rand(1, 3, read, read, generator=generator)
    features = model.encode_image(normalise(image, config), view)
    templates = model.encode_template(features, (image[:, :1] > 0.5).float())
    prefix = model.reasoner.prefix(*model.reasoner.tokenize(["the disc"]), model.reasoner.see(view))
    matched = model.match(features, image_P, templates)
    reasoned = model.reason(prefix, features, image_P)
    conditioned = Conditioned(
        top_PDHW=model.remember(features, image_P, templates),
        prior_P1HW=matched.prior_P1HW,
        points_PN2=matched.points_PN2,
        labels_PN=matched.labels_PN,
        seg_P1D=reasoned.seg_P1D,
        seg_map_P1HW=reasoned.seg_map_P1HW,
    )
    decoded = model.decode(features, image_P, conditioned, None, None)
    records = (features, templates, prefix, conditioned)
    computed = [tensor for record in records for tensor in record.to_tensors().values()]
    return [*computed, decoded.logits_P1HW, decoded.iou_P, decoded.presence_P]


@pytest.mark.parametrize("partly", [False, True])
def test_every_tensor_is_that_of_a_model_built_the_ordinary_way(partly: bool) -> None:
    expected = _tensors(_ordinary(preset("nano"), NANO))
    model = checkpoint.load(preset("nano"), NANO, partly=partly)
    found = _tensors(model)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    vlm = model.reasoner.vlm
    assert vlm.lm_head.weight is vlm.get_input_embeddings().weight


def test_outputs_are_those_of_a_model_built_the_ordinary_way() -> None:
    expected = _outputs(_ordinary(preset("nano"), NANO))
    found = _outputs(checkpoint.load(preset("nano"), NANO))
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))


def test_weights_without_shared_embeddings_are_read(tmp_path: Path) -> None:
    tied = tiny_model()
    architecture = Qwen3VLConfig.from_dict(tied.reasoner.vlm.config.to_dict())
    text: Any = architecture.text_config
    architecture.tie_word_embeddings = text.tie_word_embeddings = False
    model = Vessa(tiny_config(), tied.reasoner.tokenizer, architecture)
    checkpoint.save(model, tmp_path, half=False)
    loaded, saved = (m.reasoner.vlm for m in (checkpoint.load(tiny_config(), tmp_path), model))
    assert torch.equal(loaded.lm_head.weight, saved.lm_head.weight)
    embeddings: Any = loaded.get_input_embeddings()
    assert not torch.equal(loaded.lm_head.weight, embeddings.weight)


def test_what_a_file_lacks_is_random_only_where_that_is_wanted(tmp_path: Path) -> None:
    file = checkpoint.save(tiny_model(), tmp_path, half=False)
    tensors = load_file(file)
    expected = tensors.pop("reasoner.vlm.model.language_model.embed_tokens.weight")
    save_file(tensors, file)
    with pytest.raises(checkpoint.CheckpointError, match=r"missing \['reasoner.vlm.model.lang"):
        checkpoint.load(tiny_config(), tmp_path)
    vlm = checkpoint.load(tiny_config(), tmp_path, partly=True).reasoner.vlm
    weight = vlm.get_input_embeddings().weight
    assert vlm.lm_head.weight is weight
    assert weight.shape == expected.shape
    assert bool(weight.isfinite().all())


def test_weights_outlive_their_file(tmp_path: Path) -> None:
    file = checkpoint.save(tiny_model(), tmp_path, half=False)
    model = checkpoint.load(tiny_config(), tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file.write_bytes(b"\xff" * file.stat().st_size)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_of_one_pass_is_that_of_the_files(tmp_path: Path, dtype: torch.dtype) -> None:
    model, digest = checkpoint.load_with_digest(preset("nano"), NANO, dtype=dtype)
    assert digest == checkpoint.digest(NANO)
    assert next(model.parameters()).dtype == dtype
    file = checkpoint.save(tiny_model(), tmp_path, notes={"long": "x" * 1001})
    tensors = {**load_file(file), "empty": torch.zeros(0, 3), "flags": torch.tensor([True])}
    save_file(tensors, file)
    read: list[bytes] = []
    checkpoint.read_safetensors(file, hashed=lambda part: read.append(bytes(part)))
    assert b"".join(read) == file.read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scalars_and_buffers_stay_in_fp32(dtype: torch.dtype) -> None:
    model = checkpoint.load(preset("nano"), NANO, dtype=dtype)
    assert all(p.dtype == (dtype if p.ndim else torch.float32) for p in model.parameters())
    buffers = dict(model.named_buffers())
    assert "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in buffers
    assert all(not b.is_floating_point() or b.dtype == torch.float32 for b in buffers.values())
    stored = load_file(NANO / checkpoint.WEIGHTS_FILE)
    assert torch.equal(model.matcher.log_scale, stored["matcher.log_scale"].float())


def test_random_models_compute_and_are_the_same_for_a_seed() -> None:
    architecture = tiny_model().reasoner.vlm.config
    config = tiny_config()

    def made(seed: int) -> Vessa:
        return checkpoint.random(config, architecture, dtype=torch.bfloat16, seed=seed)

    models = [made(0), made(0), made(1)]
    one, same, other = (_tensors(model) for model in models)
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert all(bool(output.isfinite().all()) for output in _outputs(models[0]))


@pytest.mark.parametrize(
    ("name", "billions_of_qwen", "millions_of_sam2"), [("base", 2.13, 46), ("large", 8.77, 224)]
)
def test_published_sizes_are_those_of_the_checkpoints(
    name: str, billions_of_qwen: float, millions_of_sam2: float
) -> None:
    config = preset(name)
    words = tiny_model().reasoner.tokenizer
    assert config.vlm.pretrained is not None
    model = skeleton(config, words, published.ARCHITECTURES[config.vlm.pretrained]())
    qwen = sum(p.numel() for p in model.reasoner.vlm.parameters())
    assert qwen / 1e9 == pytest.approx(billions_of_qwen, abs=0.01)
    sam2 = sum(p.numel() for n, p in model.named_parameters() if checkpoint._is_sam2(n))
    assert sam2 / 1e6 == pytest.approx(millions_of_sam2, rel=0.03)


def test_memory_of_one_layer_is_that_of_the_next() -> None:
    code = """
import resource, threading, torch
from vessa_common import memory
from vessa_server.model.skeleton import LARGEST_KEPT, MOST_KEPT

def layers():
    for _ in range(20):
        torch.ones(10 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10 * 2**20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

memory.keep_freed(LARGEST_KEPT, MOST_KEPT, one_heap=True)
layers()
thread = threading.Thread(target=layers)
thread.start()
thread.join()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    pages = 5 * 40 * 2**20 // resource.getpagesize()
    for faults in map(int, done.stdout.split()):
        assert faults < pages / 10, "pages are given back, and taken anew"


def test_reading_holds_the_weights_once(tmp_path: Path) -> None:
    vlm = dataclasses.replace(tiny_config().vlm, vocab_size=200_000, hidden_size=128)
    config = dataclasses.replace(tiny_config(), vlm=vlm)
    checkpoint.save(checkpoint.random(config), tmp_path)
    code = f"""
import resource
from pathlib import Path
from support import tiny_config
from vessa_server.model import checkpoint
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
import dataclasses
vlm = dataclasses.replace(tiny_config().vlm, vocab_size=200_000, hidden_size=128)
config = dataclasses.replace(tiny_config(), vlm=vlm)
folder = Path({str(tmp_path)!r})
before = peak()
model = checkpoint.load(config, folder)
print(peak() - before, sum(p.nbytes for p in model.parameters()))
"""
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    grown, weights = map(int, done.stdout.split())
    # Half as much again is the file, in pages that the system may take back.
    assert grown < 1.8 * weights
