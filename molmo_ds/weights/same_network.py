"""Whether weights that a run begins with belong to its network where the shapes of tensors cannot tell."""

import logging
from collections.abc import Iterator
from typing import Any

from molmo_ds.architecture import MolmoConfig, VisionConfig

log = logging.getLogger(__name__)

# settings that change what the same tensors compute
NETWORK = {
    "text": (
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "qk_norm_per_head",
        "norm_after",
        "clip_qkv",
        "num_experts_per_tok",
        "norm_topk_prob",
    ),
    "vision": ("num_attention_heads", "hidden_act", "layer_norm_eps"),
    "connector": ("pooling", "pooling_size", "padding_embed", "pooling_mask"),
}
# settings that a run may change on purpose, so that the network must learn what is new to it
CHANGED = {
    "text": ("rope_theta", "rope_scaling", "rope_scaling_layers", "image_attention"),
    "images": (
        "crop_mode",
        "overlap_margins",
        "resize",
        "pad_value",
        "use_col_tokens",
        "legacy_image_mask",
    ),
    "video": ("pooling_size", "per_frame_special_token"),
}


def check_network(ours: MolmoConfig, theirs: MolmoConfig, name: str) -> None:
    """ValueError where weights were trained in another network than they are to start; other differences are logged.

    Args:
        name: of the weights, for the sentence.
    """
    wrong = [
        f"model.{key}={there} (not {here})" for key, here, there in _unlike(ours, theirs, NETWORK)
    ]
    layers, begun = _features(ours.vision), _features(theirs.vision)
    if layers != begun:
        wrong.append(f"features of the ViT's blocks {begun} (not {layers})")
    if wrong:
        raise ValueError(
            f"init_from={name} was trained with {', '.join(wrong)}; its tensors fit and would compute something else: "
            "set the same."
        )
    for key, here, there in _unlike(ours, theirs, CHANGED):
        log.warning(
            "init_from=%s was trained with model.%s=%s, and this run has %s", name, key, there, here
        )


def _unlike(
    ours: MolmoConfig, theirs: MolmoConfig, settings: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str, Any, Any]]:
    for part, names in settings.items():
        for name in names:
            here, there = getattr(getattr(ours, part), name), getattr(getattr(theirs, part), name)
            if here != there:
                yield f"{part}.{name}", here, there


def _features(vision: VisionConfig) -> list[int]:
    # blocks counted from the first, in the order in which their outputs are joined
    return [layer % vision.num_hidden_layers for layer in vision.feature_layers]
