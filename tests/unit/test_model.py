from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base

from support import tiny_config, tiny_model
from vessa_server.model import checkpoint, memory, prompts, tokenizer
from vessa_server.model.config import DecoderConfig, HieraConfig, VlmConfig
from vessa_server.model.presets import PRESETS, preset
from vessa_server.model.vessa import Conditioned, ImageFeatures, Vessa
from vessa_server.model.vision_encoder import build_image_encoder


def _encode(model: Vessa, count: int, seed: int = 0) -> ImageFeatures:
    image = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return model.encode_image(image, image)


def _condition(
    model: Vessa, features: ImageFeatures, image_P: torch.Tensor, templates: int = 1
) -> Conditioned:
    rows = len(image_P) * templates
    mask = torch.zeros(rows, 1, 64, 64)
    mask[..., 16:40, 20:44] = 1
    encoded = model.encode_template(_encode(model, rows, seed=7), mask)
    ids, attention = model.reasoner.tokenize(["disc"] * len(image_P))
    overlay = model.reasoner.see(torch.full((len(image_P), 3, 64, 64), 0.4))
    prefix = model.reasoner.prefix(ids, attention, overlay)
    matched = model.match(features, image_P, encoded)
    reasoned = model.reason(prefix, features, image_P)
    return Conditioned(
        top_PDHW=model.remember(features, image_P, encoded),
        prior_P1HW=matched.prior_P1HW,
        points_PN2=matched.points_PN2,
        labels_PN=matched.labels_PN,
        seg_P1D=reasoned.seg_P1D,
        seg_map_P1HW=reasoned.seg_map_P1HW,
    )


@torch.no_grad()
def test_one_forward_for_images_times_classes(model: Vessa) -> None:
    features, image_P = _encode(model, 2), torch.tensor([0, 0, 1])
    conditioned = _condition(model, features, image_P, templates=2)
    decoded = model.decode(features, image_P, conditioned, None, None)
    assert decoded.logits_P1HW.shape == (3, 1, 32, 32)
    alone = model.decode(
        features.select(torch.tensor([1])),
        torch.tensor([0]),
        conditioned.select(torch.tensor([2])),
        None,
        None,
    )
    assert torch.allclose(decoded.logits_P1HW[2:], alone.logits_P1HW, atol=1e-4)
    assert bool(((decoded.iou_P >= 0) & (decoded.iou_P <= 1)).all())


@torch.no_grad()
def test_the_order_of_templates_does_not_matter(model: Vessa) -> None:
    features, image_P = _encode(model, 1), torch.tensor([0])
    mask = torch.zeros(3, 1, 64, 64)
    mask[0, :, :20], mask[1, :, 30:], mask[2, :, :, 20:30] = 1, 1, 1
    templates = model.encode_template(_encode(model, 3, seed=1), mask)
    turned = templates.select(torch.tensor([2, 0, 1]))
    assert torch.allclose(
        model.remember(features, image_P, templates),
        model.remember(features, image_P, turned),
        atol=1e-5,
    )
    one, other = (model.match(features, image_P, t).prior_P1HW for t in (templates, turned))
    assert torch.allclose(one, other, atol=1e-6)


@torch.no_grad()
def test_student_masks_reach_only_their_pairs(model: Vessa) -> None:
    features, image_P = _encode(model, 1), torch.tensor([0, 0])
    conditioned = _condition(model, features, image_P)
    student = torch.zeros(2, 1, 32, 32)
    student[..., 4:10, 4:10] = 1
    without = model.decode(features, image_P, conditioned, None, None)
    has = torch.tensor([True, False])
    decoded = model.decode(features, image_P, conditioned, student, has)
    assert float((decoded.logits_P1HW[0] - without.logits_P1HW[0]).abs().max()) > 1e-3
    assert torch.allclose(decoded.logits_P1HW[1], without.logits_P1HW[1], atol=1e-5)


def test_every_part_learns(model: Vessa) -> None:
    training = tiny_model(seed=1)
    features, image_P = _encode(training, 1), torch.tensor([0])
    conditioned = _condition(training, features, image_P)
    student = torch.full((1, 1, 32, 32), 0.7)
    decoded = training.decode(features, image_P, conditioned, student, torch.tensor([True]))
    total = decoded.class_logits().sum() + decoded.iou_P.sum() + decoded.presence_P.sum()
    (total + conditioned.prior_P1HW.sum()).backward()
    for name, part in training.named_children():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert any(float(g.abs().max()) > 0 for g in gradients), name


def test_nano_is_in_its_size_class() -> None:
    model = Vessa(preset("nano"), tokenizer.build(prompts.corpus(["x"]), 1024))
    assert 5e6 < sum(p.numel() for p in model.parameters()) < 12e6


def test_presets_are_what_they_are_called() -> None:
    assert {name: make().name for name, make in PRESETS.items()} == {n: n for n in PRESETS}
    assert preset("base").vlm.pretrained == "Qwen/Qwen3-VL-2B-Instruct"
    with pytest.raises(ValueError, match="nano, base, large"):
        preset("huge")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: dataclasses.replace(tiny_config(), image_size=100), "multiple of 32"),
        (lambda: VlmConfig(image_size=100), "multiple of 32"),
        (
            lambda: dataclasses.replace(tiny_config().hiera, global_attention_blocks=(9,)),
            "below the number of blocks",
        ),
        (lambda: dataclasses.replace(tiny_config().matcher, temperature_init=0), "temperature"),
    ],
)
def test_wrong_configurations_are_refused(build: object, words: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=words):
        build()


def test_weights_survive_saving(tmp_path: Path, model: Vessa) -> None:
    checkpoint.save(model, tmp_path, half=False)
    loaded = checkpoint.load(tiny_config(), tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    digest = checkpoint.digest(tmp_path)
    checkpoint.save(tiny_model(seed=5), tmp_path, half=False)
    assert checkpoint.digest(tmp_path) != digest


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, model: Vessa) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="no file"):
        checkpoint.load(tiny_config(), tmp_path)
    file = checkpoint.save(model, tmp_path)
    bigger = dataclasses.replace(tiny_config(), d_model=64)
    with pytest.raises(checkpoint.CheckpointError, match="another configuration"):
        checkpoint.load(bigger, tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.load(tiny_config(), tmp_path)


def _published_layout() -> tuple[Vessa, SAM2Base]:
    """A tiny SAM 2.1 with all switches of the published configurations, and a VESSA of its size."""
    config = dataclasses.replace(
        tiny_config(),
        hiera=HieraConfig(
            embed_dim=8,
            stages=(1, 1, 2, 1),
            global_attention_blocks=(3,),
            window_spec=(8, 4, 4, 2),
            background_size=(2, 2),
            fpn_top_down_levels=(2, 3),
        ),
        decoder=DecoderConfig(),
    )
    torch.manual_seed(0)
    words = tokenizer.build(prompts.corpus(["disc bar"]), config.vlm.vocab_size)
    sam2 = SAM2Base(
        image_encoder=build_image_encoder(config),
        memory_attention=memory.build_memory_attention(config),
        memory_encoder=memory.build_memory_encoder(config),
        num_maskmem=7,
        image_size=64,
        use_high_res_features_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=True,
        proj_tpos_enc_in_obj_ptrs=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_multimask_token_for_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=True,
    )
    return Vessa(config, words).eval(), sam2.eval()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@torch.no_grad()
def test_published_sam2_checkpoints_load(tmp_path: Path, suffix: str) -> None:
    vessa, sam2 = _published_layout()
    file = tmp_path / f"sam2{suffix}"
    if suffix == ".pt":
        torch.save({"model": sam2.state_dict()}, file)
    else:
        save_file({n: t.contiguous() for n, t in sam2.state_dict().items()}, file)
    checkpoint.load_sam2(vessa, file)
    image = torch.rand(1, 3, 64, 64)
    expected = sam2.forward_image(image)
    found = vessa.encode_image(image, image)
    assert torch.equal(found.top_BDHW, expected["backbone_fpn"][2])
    assert torch.equal(found.high_res_4_BCHW, expected["backbone_fpn"][0])
    assert torch.equal(found.high_res_8_BCHW, expected["backbone_fpn"][1])
    # The template goes through the memory encoder as SAM 2 encodes a conditioning frame.
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 20:40] = 1
    features = expected["backbone_fpn"][2].flatten(2).permute(2, 0, 1)
    sam2.sigmoid_scale_for_mem_enc, sam2.sigmoid_bias_for_mem_enc = 20.0, -10.0
    sam2.no_obj_embed_spatial = None
    encoded, _ = sam2._encode_new_memory(
        [features], [(4, 4)], (mask * 2 - 1) * 1e4, torch.ones(1, 1), is_mask_from_pts=False
    )
    assert torch.allclose(vessa.encode_template(found, mask).memory_KMHW, encoded, atol=1e-5)


def test_other_sam2_checkpoints_are_refused(tmp_path: Path) -> None:
    vessa, sam2 = _published_layout()
    state = dict(sam2.state_dict())
    state.pop("maskmem_tpos_enc")
    torch.save({"model": state}, tmp_path / "sam2.pt")
    with pytest.raises(checkpoint.CheckpointError, match="maskmem_tpos_enc"):
        checkpoint.load_sam2(vessa, tmp_path / "sam2.pt")


def test_the_tokenizer_is_the_same_every_time_and_knows_all_bytes(tmp_path: Path) -> None:
    one, two = (tokenizer.build(prompts.corpus(["left lung"]), 600) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    text = "Größe 漢字 🫀 left lung"
    assert one.decode(one.encode(text)) == text
    one.backend_tokenizer.save(str(tmp_path / "t.json"))
    assert tokenizer.load(tmp_path / "t.json").encode(text) == one.encode(text)
    assert len(one.encode("<SEG>")) == 1


@torch.no_grad()
def test_published_checkpoints_are_joined_and_served(tmp_path: Path) -> None:
    vessa, sam2 = _published_layout()
    torch.save({"model": sam2.state_dict()}, tmp_path / "sam2.pt")
    vessa.reasoner.vlm.save_pretrained(tmp_path / "qwen")
    vessa.reasoner.tokenizer.save_pretrained(tmp_path / "qwen")
    joined = checkpoint.assemble(vessa.config, str(tmp_path / "qwen"), tmp_path / "sam2.pt")
    for name, tensor in vessa.reasoner.vlm.state_dict().items():
        assert torch.equal(joined.reasoner.vlm.state_dict()[name], tensor), name
    checkpoint.save(joined, tmp_path / "joined", half=False)
    loaded = checkpoint.load(vessa.config, tmp_path / "joined")
    image = torch.rand(1, 3, 64, 64)
    expected, found = joined.encode_image(image, image), loaded.encode_image(image, image)
    assert torch.equal(found.top_BDHW, expected.top_BDHW)
    assert torch.equal(found.vlm_tokens_BTD, expected.vlm_tokens_BTD)
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.assemble(vessa.config, str(tmp_path / "nothing"), tmp_path / "sam2.pt")
    (tmp_path / "sam2.pt").write_bytes(b"x")
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.assemble(vessa.config, str(tmp_path / "qwen"), tmp_path / "sam2.pt")
