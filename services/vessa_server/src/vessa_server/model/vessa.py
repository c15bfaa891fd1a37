"""VESSA: the five steps of Stage 1 as one model.

Axes: B images, P image-class pairs, K templates, C channels, D features, H W space, M memory
channels. A pair is one class asked of one image; ``image_P`` says which image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_
from transformers import Qwen3VLConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vessa_server.matching.template_matcher import MatchPrompts, TemplateMatcher
from vessa_server.model import memory
from vessa_server.model.config import VessaConfig
from vessa_server.model.mask_decoder import build_mask_decoder, build_prompt_encoder
from vessa_server.model.precision import narrowed
from vessa_server.model.reasoner import PromptPrefix, Reasoner, VisualTokens
from vessa_server.model.records import TensorRecord
from vessa_server.model.refinement_head import RefinementHead, halved
from vessa_server.model.seg_token_projector import SegMap, SegTokenProjector
from vessa_server.model.vision_encoder import MatchHead, build_image_encoder, pyramid

STUDENT_LOGIT_LIMIT = 4.0
PRIOR_EPSILON = 1e-3


@dataclass(frozen=True)
class ImageFeatures(TensorRecord):
    """What the decoder, matcher and VLM need of an image; independent of classes."""

    detail_BCHW: Tensor
    high_res_4_BCHW: Tensor
    high_res_8_BCHW: Tensor
    top_BDHW: Tensor
    match_BDHW: Tensor
    vlm_tokens_BTD: Tensor
    vlm_deepstack_BLTD: Tensor

    @property
    def seen(self) -> bool:
        """Whether the VLM has seen the images."""
        return self.vlm_tokens_BTD.shape[1] > 0

    def unseen(self) -> ImageFeatures:
        """All but the VLM's view, which decoding has no use for."""
        return replace(
            self,
            vlm_tokens_BTD=self.vlm_tokens_BTD[:, :0],
            vlm_deepstack_BLTD=self.vlm_deepstack_BLTD[:, :, :0],
        )

    def visual_tokens(self) -> VisualTokens:
        """The VLM's view of the images."""
        return VisualTokens(self.vlm_tokens_BTD, self.vlm_deepstack_BLTD.transpose(0, 1))


@dataclass(frozen=True)
class TemplateFeatures(TensorRecord):
    """What is kept of one template and class."""

    memory_KMHW: Tensor
    match_KDHW: Tensor
    mask_K1HW: Tensor
    embedding_K2D: Tensor


@dataclass(frozen=True)
class Conditioned(TensorRecord):
    """Image-class pairs after steps 1 to 4: all that decoding needs besides the image."""

    top_PDHW: Tensor
    prior_P1HW: Tensor
    points_PN2: Tensor
    labels_PN: Tensor
    seg_P1D: Tensor
    seg_map_P1HW: Tensor


@dataclass(frozen=True)
class Reasoned:
    """Step 3: prompt embedding of ``<SEG>``, its map of logits at stride 8, and the VLM's loss."""

    seg_P1D: Tensor
    seg_map_P1HW: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Decoded:
    """Output of step 5, at stride 2: mask logits, predicted IoU and presence logit; fp32."""

    logits_P1HW: Tensor
    iou_P: Tensor
    presence_P: Tensor

    def class_logits(self) -> Tensor:
        """Mask logits lowered where the decoder says that the object is absent."""
        return self.logits_P1HW + self.presence_P.clamp(max=0)[:, None, None, None]


class Vessa(nn.Module):
    """Reference-guided segmentation model. Attribute names follow SAM 2's checkpoints."""

    def __init__(
        self,
        config: VessaConfig,
        tokenizer: PreTrainedTokenizerBase,
        vlm_architecture: Qwen3VLConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        d_model = config.d_model
        self.image_encoder = build_image_encoder(config)
        self.match_head = MatchHead(d_model, config.matcher.feature_dim)
        self.matcher = TemplateMatcher(
            temperature_init=config.matcher.temperature_init,
            num_positive_points=config.matcher.num_positive_points,
            stride=8,
        )
        self.reasoner = Reasoner(config.vlm, tokenizer, vlm_architecture)
        self.seg_projector = SegTokenProjector(self.reasoner.hidden_size, d_model)
        self.seg_map = SegMap(self.reasoner.hidden_size, config.matcher.feature_dim)
        self.memory_encoder = memory.build_memory_encoder(config)
        self.memory_attention = memory.build_memory_attention(config)
        self.maskmem_tpos_enc = nn.Parameter(
            torch.zeros(config.memory.max_templates, 1, 1, config.memory.memory_dim)
        )
        trunc_normal_(self.maskmem_tpos_enc, std=0.02)
        self.sam_prompt_encoder = build_prompt_encoder(config)
        self.sam_mask_decoder = build_mask_decoder(config)
        self.student_embedding = nn.Parameter(torch.zeros(1, d_model, 1, 1))
        residual = config.decoder.residual_init
        self.prior_weight = nn.Parameter(torch.tensor(residual))
        self.seg_weight = nn.Parameter(torch.tensor(residual))
        self.student_weight = nn.Parameter(torch.tensor(residual))
        self.refinement = RefinementHead(d_model, config.decoder.refinement_widths)

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in; inputs may be in fp32, and what is said of masks is."""
        return self.student_embedding.dtype

    def encode_image(self, canvas_B3HW: Tensor, vlm_B3HW: Tensor | None) -> ImageFeatures:
        """Encode normalised canvases, and the same images in [0, 1] at the VLM's size.

        Without the latter the features have no visual tokens, and step 3 is left out.
        """
        canvas_B3HW = narrowed(canvas_B3HW, self.dtype)
        levels = pyramid(self.image_encoder, canvas_B3HW)
        if vlm_B3HW is None:
            visual = self.reasoner.unseen(canvas_B3HW)
        else:
            visual = self.reasoner.see(vlm_B3HW)
        return ImageFeatures(
            detail_BCHW=halved(canvas_B3HW),
            high_res_4_BCHW=self.sam_mask_decoder.conv_s0(levels.level_4_BCHW),
            high_res_8_BCHW=self.sam_mask_decoder.conv_s1(levels.level_8_BCHW),
            top_BDHW=levels.level_16_BCHW,
            match_BDHW=self.match_head(levels),
            vlm_tokens_BTD=visual.tokens_BTD,
            vlm_deepstack_BLTD=visual.deepstack_LBTD.transpose(0, 1),
        )

    def encode_template(self, features: ImageFeatures, mask_K1HW: Tensor) -> TemplateFeatures:
        """Encode annotated templates; ``mask_K1HW`` is binary, at canvas size (step 4)."""
        encoded = self.memory_encoder(
            features.top_BDHW,
            narrowed(mask_K1HW * memory.MASK_SCALE + memory.MASK_BIAS, self.dtype),
            skip_mask_sigmoid=True,
        )
        match = features.match_BDHW
        small_mask = F.adaptive_avg_pool2d(mask_K1HW, match.shape[-1])
        return TemplateFeatures(
            memory_KMHW=encoded["vision_features"],
            match_KDHW=match,
            mask_K1HW=small_mask,
            embedding_K2D=self.matcher.describe(match, small_mask),
        )

    def match(
        self, features: ImageFeatures, image_P: Tensor, templates: TemplateFeatures
    ) -> MatchPrompts:
        """Step 2. ``templates`` holds P*K rows, the K templates of a pair next to each other."""
        pairs = image_P.shape[0]
        prior = self.matcher.propagate(
            features.match_BDHW[image_P],
            templates.match_KDHW.unflatten(0, (pairs, -1)),
            templates.mask_K1HW.unflatten(0, (pairs, -1)),
        )
        return self.matcher.prompts(prior)

    def remember(
        self, features: ImageFeatures, image_P: Tensor, templates: TemplateFeatures
    ) -> Tensor:
        """Step 4: features of each pair conditioned on its K templates, (P, D, H, W)."""
        memory_PKMHW = templates.memory_KMHW.unflatten(0, (image_P.shape[0], -1))
        top = features.top_BDHW[image_P]
        position = self.image_encoder.neck.position_encoding(top)
        memory_position = self.memory_encoder.position_encoding(memory_PKMHW[:1, 0])[0]
        return memory.attend(
            self.memory_attention,
            features_PDHW=top,
            position_PDHW=narrowed(position, self.dtype),
            memory_PKMHW=memory_PKMHW,
            memory_position_MHW=narrowed(memory_position, self.dtype),
            # SAM 2 gives conditioning frames the last temporal encoding.
            template_encoding_M=self.maskmem_tpos_enc[-1, 0, 0],
        )

    def reason(
        self,
        prefix: PromptPrefix,
        features: ImageFeatures,
        image_P: Tensor,
        answer_PT: Tensor | None = None,
    ) -> Reasoned:
        """Step 3."""
        target = features.visual_tokens().select(image_P)
        reading = self.reasoner.read(prefix, target, answer_PT)
        match_PDHW = features.match_BDHW[image_P]
        return Reasoned(
            self.seg_projector(reading.seg_PD),
            self.seg_map(reading.seg_PD, reading.target_PTD, match_PDHW),
            reading.loss,
        )

    def unreasoned(self, features: ImageFeatures, pairs: int) -> Reasoned:
        """What step 3 gives where nobody asks the VLM: no embedding, and an even map."""
        match = features.match_BDHW
        return Reasoned(
            match.new_zeros(pairs, 1, self.config.d_model),
            match.new_zeros(pairs, 1, *match.shape[-2:]),
            match.new_zeros(()),
        )

    def decode(
        self,
        features: ImageFeatures,
        image_P: Tensor,
        conditioned: Conditioned,
        student_P1HW: Tensor | None,
        has_student_P: Tensor | None,
    ) -> Decoded:
        """Step 5.

        Args:
            features: of the B images.
            image_P: image of each pair.
            conditioned: the pairs after steps 1 to 4.
            student_P1HW: student probabilities at stride 2, in [0, 1]; None for none at all.
            has_student_P: which pairs have one.
        """
        prompts = self.sam_prompt_encoder
        sparse = prompts._embed_points(conditioned.points_PN2, conditioned.labels_PN, pad=False)
        sparse = torch.cat([sparse, conditioned.seg_P1D], dim=1)
        prior_logit = torch.logit(conditioned.prior_P1HW.float(), eps=PRIOR_EPSILON)
        seg_map = conditioned.seg_map_P1HW.float()
        # Two opinions of one pixel: their logits add up.
        guide_4 = _enlarge(prior_logit + self.seg_weight * seg_map, 2.0)
        prior_2 = _enlarge(prior_logit, 4.0)
        dense = prompts._embed_masks(narrowed(guide_4, self.dtype))
        residual = self.prior_weight * guide_4
        student_2 = torch.zeros_like(prior_2).expand(-1, 2, -1, -1)
        if student_P1HW is not None and has_student_P is not None:
            has = has_student_P.to(prior_logit.dtype)[:, None, None, None]
            limit = STUDENT_LOGIT_LIMIT
            student_logit = torch.logit(student_P1HW.float(), eps=1e-4).clamp(-limit, limit)
            student_2 = torch.cat([has * student_logit, has.expand_as(student_logit)], dim=1)
            student_4 = halved(student_logit)
            embedded = prompts._embed_masks(narrowed(student_4, self.dtype))
            dense = dense + has * (embedded + self.student_embedding)
            residual = residual * (1 - has) + has * self.student_weight * student_4
        high_res_4 = features.high_res_4_BCHW[image_P]
        high_res_8 = features.high_res_8_BCHW[image_P]
        masks, iou, _, presence = self.sam_mask_decoder(
            image_embeddings=conditioned.top_PDHW,
            image_pe=narrowed(prompts.get_dense_pe(), self.dtype),
            sparse_prompt_embeddings=narrowed(sparse, self.dtype),
            dense_prompt_embeddings=narrowed(dense, self.dtype),
            multimask_output=False,
            repeat_image=False,
            high_res_features=[high_res_4, high_res_8],
        )
        logits = _enlarge(masks.float() + residual, 2.0)
        logits = logits + self.refinement(
            image_PCHW=features.detail_BCHW[image_P],
            logits_P1HW=logits,
            prior_logits_P1HW=prior_2,
            seg_logits_P1HW=_enlarge(seg_map, 4.0),
            student_P2HW=student_2,
            high_res_4_PCHW=high_res_4,
            high_res_8_PCHW=high_res_8,
            conditioned_PDHW=conditioned.top_PDHW,
        )
        return Decoded(logits, iou[:, 0].float(), presence[:, 0].float())


def _enlarge(map_P1HW: Tensor, factor: float) -> Tensor:
    return F.interpolate(map_P1HW, scale_factor=factor, mode="bilinear")
