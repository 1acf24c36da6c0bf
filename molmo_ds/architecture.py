"""Every dataclass of a network's architecture: keyword-only, frozen, each choice a Literal, each number with its range.

Fields are checked by pydantic whenever one is made; what must hold between fields is in rules.py. hub/bundle.py copies
this file into exported folders, where the standard library's `dataclass` takes pydantic's place and nothing is checked.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal, Optional

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.dataclasses import dataclass

IM_PATCH = 2  # id of <im_patch>, counted from text.vocab_size
SCORER = 1024  # inner width of HeMolmo's scorers
Size = Annotated[int, Ge(1), Le(1 << 20)]  # a width, a length, a number of layers
Count = Annotated[int, Ge(1), Lt(1 << 62)]
Whole = Annotated[int, Ge(0), Lt(1 << 62)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Rate = Annotated[float, Ge(0), Lt(1)]  # of dropout, of a moving mean
Share = Annotated[float, Ge(0), Le(1)]
Crops = Annotated[int, Ge(1), Le(36)]


class Checked:
    """Settings whose fields are checked: numbers are finite, a text is no number, no name is unknown."""

    __pydantic_config__ = {"strict": True, "allow_inf_nan": False, "extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class VisionConfig(Checked):
    """A ViT. MetaCLIP is `clip`; `dinov2` has LayerScale; `siglip` has neither class token nor pre-LayerNorm."""

    model_type: Literal["clip", "siglip", "dinov2"] = "clip"
    image_size: Size = 336  # side of one crop in pixels
    patch_size: Size = 14  # side of a patch in pixels; divides image_size
    hidden_size: Size = 1024  # width of a patch's vector
    intermediate_size: Size = 4096  # of the MLP
    num_hidden_layers: Size = 23  # those after the last feature layer are not run
    num_attention_heads: Size = 16  # divide hidden_size
    hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "quick_gelu"  # of the MLP
    layer_norm_eps: Positive = 1e-5  # added to the variance
    # patches in the position table (no class token); None = those of a crop
    num_positions: Optional[Size] = None
    # outputs of blocks, concatenated in this order
    feature_layers: Annotated[tuple[int, ...], MinLen(1)] = (-2, -9)
    attention_dropout: Rate = 0.0  # of the attention's weights
    initializer_range: Positive = 0.02  # standard deviation of first weights

    @property
    def class_tokens(self) -> int:
        """Tokens of a crop before those of its patches."""
        return 0 if self.model_type == "siglip" else 1


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig(Checked):
    """The way from the features of a crop to a few vectors of the decoder's width."""

    # attention: query = first patch
    pooling: Literal["attention_meanq", "attention", "stack"] = "attention_meanq"
    pooling_size: Size = 2  # windows of pooling_size x pooling_size patches
    projector: Literal["mlp", "linear"] = "mlp"  # mlp is a SwiGLU
    padding_embed: Literal["none", "pad_embed", "regress", "pad_and_partial_pad"] = (
        "pad_and_partial_pad"
    )
    # missing patches of a window are left out of its query's mean and of its keys, as in Molmo2
    pooling_mask: bool = False
    intermediate_size: Optional[Size] = None  # of the mlp; None = text.intermediate_size
    # what features are added to: the learnt embedding of <im_patch>, or zero, as vLLM has it; auto = zero in a run from
    # new weights, else as in the weights that it begins with
    patch_row: Literal["auto", "learnt", "zero"] = "auto"
    feature_dropout: Rate = 0.0  # of the features
    initializer_range: Positive = 0.02  # standard deviation of first weights


@dataclass(frozen=True, kw_only=True)
class TextConfig(Checked):
    """A decoder of the Qwen, OLMo, OLMoE or Llama kind."""

    # names the hub layout, the fields below decide
    model_type: Literal["qwen2", "qwen3", "olmo", "olmo2", "olmo3", "olmoe", "llama"] = "qwen2"
    vocab_size: Size = 152064  # words of the padded tokenizer; the image tokens' ids start here
    embedding_size: Size = 152064  # rows of the base embedding and of the head
    additional_vocab_size: Size = 128  # rows of the second embedding
    hidden_size: Size = 3584  # width of a token's vector
    intermediate_size: Size = 18944  # of one half of the SwiGLU (or of one expert)
    num_hidden_layers: Size = 28  # decoder blocks
    num_attention_heads: Size = 28  # of the queries
    num_key_value_heads: Size = 4  # divide num_attention_heads
    head_dim: Optional[Size] = None  # even; None = hidden_size / num_attention_heads
    rope_theta: Positive = 1e6  # base of the rotary positions
    # transformers' dictionary; only "llama3", "yarn" and "default" are known
    rope_scaling: Optional[dict[str, Any]] = None
    rope_scaling_layers: Optional[tuple[Whole, ...]] = None  # that it scales; None = all
    norm_type: Literal["rms", "layer"] = "rms"  # layer = LayerNorm without weights, OLMo v1
    rms_norm_eps: Positive = 1e-6  # added to the mean square
    attention_bias: bool = True  # on q, k, v
    qk_norm: bool = False  # RMSNorm over the whole q and k projections
    qk_norm_per_head: bool = False  # over each head instead, with one weight for all (Qwen3)
    norm_after: bool = False  # normalise the branch's output (OLMo2) instead of its input
    clip_qkv: Optional[Positive] = None  # largest absolute value of q, k and v
    num_experts: Annotated[int, Ge(0), Le(1 << 20)] = 0  # 0 = dense
    num_experts_per_tok: Annotated[int, Ge(0), Le(1 << 20)] = 0  # experts that each token goes to
    norm_topk_prob: bool = False  # the chosen experts' weights sum to 1
    # what the tokens of pictures see in addition to what lies before them: nothing, those of all pictures
    # of their sample, or those of their own picture or frame
    image_attention: Literal["causal", "image_tokens", "within_image"] = "causal"
    max_position_embeddings: Size = 4096  # longest prompt, in tokens
    tie_word_embeddings: bool = False  # the head is the base embedding
    attention_dropout: Rate = 0.0  # of the attention's weights
    residual_dropout: Rate = 0.0  # where the target is not learnt
    response_residual_dropout: Rate = 0.0  # where it is
    embedding_dropout: Rate = 0.0  # of the token embeddings
    initializer_range: Positive = 0.02  # standard deviation of first weights

    @property
    def head_width(self) -> int:
        """Channels of one head, whether they are said or follow from the width."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Checked):
    """The way from a picture to crops and image tokens."""

    crop_mode: Literal["overlap-and-resize-c2", "resize"] = "overlap-and-resize-c2"
    # high-resolution crops; the global view comes on top
    max_crops: Crops = 12
    # those of one of several pictures, of Molmo2, at most max_crops; None = max_crops
    several_max_crops: Optional[Crops] = None
    overlap_margins: tuple[Whole, Whole] = (4, 4)  # patches, left/top and right/bottom
    # interpolation and normalisation
    resize: Literal["clip", "siglip", "dinov2", "metaclip"] = "clip"
    pad_value: Share = 0.0  # before normalisation
    use_col_tokens: bool = True  # a token at the end of each row of patches
    legacy_image_mask: bool = True  # released weights expect the padding mask one crop off
    exact: bool = False  # float32 crops equal to the reference instead of uint8 crops
    # high-resolution crops of a picture that is pointed at, with a probability of p_high_res
    high_res_max_crops: Annotated[int, Ge(1), Le(36)] = 24
    p_high_res: Share = 0.0  # see high_res_max_crops; drawn again in every epoch
    max_images: Optional[Size] = None  # a sample with more pictures is left out; None = no limit


@dataclass(frozen=True, kw_only=True)
class VideoConfig(Checked):
    """The way from a video to frames and their tokens."""

    max_frames: Size = 8  # frames of one video, unless its record says num_frames
    # frames per second of a video that is short enough for them; None = always max_frames
    max_fps: Optional[Positive] = None
    # uniform_last_frame takes the end too; uniform does not; fps starts at 0 and may end early
    frame_sample_mode: Literal["uniform_last_frame", "uniform", "fps"] = "uniform_last_frame"
    pooling_size: Optional[Size] = None  # windows of a frame; None = those of a picture
    # tokens around each frame, as released, or (False) around the whole video
    per_frame_special_token: bool = True
    subtitle_seconds: NotNegative = 1.0  # subtitles so far from every frame are left out


# (mean, standard deviation) of the channels by ImageConfig.resize; bytes are divided by 255 first
PIXEL_STATISTICS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "metaclip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(Checked):
    """HeMolmo's selection: all windows of a picture are scored, and the decoder sees the best of them."""

    picks: Size = 512  # windows of a picture that the decoder sees; all of them where it has fewer
    scorer: Literal["linear", "mlp", "prior"] = "linear"  # prior scores a window by itself alone
    scored_layers: Optional[Size] = None  # decoder layers whose outputs are scored; None = all
    norm: bool = True  # RMSNorm of what is scored
    normalize: bool = True  # divide what is scored by the square root of its width
    four_scores: bool = True  # of the windows of a low-resolution token, or one for all four
    vector_query: Literal["none", "plain", "scaled"] = "none"  # the question's end asks the windows
    first_pass_layers: Optional[tuple[Whole, Whole]] = None  # [first, end) that the scorer trains
    learn_embedding: bool = False  # it flows into what the first pass begins with
    learn_windows: bool = False  # it flows into the windows' features
    scored_dropout: Rate = 0.1  # of the outputs that are scored
    window_dropout: Rate = 0.1  # of the windows' features that are scored
    rescale: Positive = 1.0  # divides scores
    offset: Annotated[float, Ge(-100), Le(100)] = 0.2  # is added to scores
    target: Share = 0.7  # the mean importance that the auxiliary loss wants
    loss_weight: NotNegative = 0.01  # of the auxiliary loss, which is logged with the z-loss
    loss_power: Positive = 1.0  # of the distance from the target
    loss_mean: Literal["batch", "example", "example_means"] = "batch"  # whose mean is at the target
    saturation_loss: NotNegative = 0.0  # weight of the square of scores beyond 10
    scale_at_test: bool = False  # importance scales values when the network answers too
    attention_scaling: Optional[Share] = (
        None  # keys get fainter, by log(1 - this + this * importance)
    )


@dataclass(frozen=True, kw_only=True)
class MolmoConfig(Checked):
    """One architecture."""

    # how pictures become crops and tokens, and which format is released
    family: Literal["molmo", "molmo2", "hemolmo"] = "molmo"
    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    selection: Optional[SelectionConfig] = None  # of family hemolmo

    @property
    def patch_token(self) -> int:
        """The id of <im_patch>, to which the features of pictures are added."""
        return self.text.vocab_size + IM_PATCH

    @property
    def zero_row(self) -> int | None:
        """The id whose embedding is zero and stays so, or None."""
        return self.patch_token if self.connector.patch_row == "zero" else None
