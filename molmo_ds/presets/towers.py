"""Vision towers of the released models and of others that were tried under them."""

from dataclasses import replace

from molmo_ds.architecture import VisionConfig

CLIP = VisionConfig()
SIGLIP = VisionConfig(
    model_type="siglip",
    image_size=378,
    patch_size=14,
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    feature_layers=(-3, -9),
)
# the fixed resolution of SigLIP 2 is the same module; Molmo2 takes blocks 24 and 18 and drops the two after them
SIGLIP2 = replace(SIGLIP, num_hidden_layers=25, feature_layers=(-1, -7))
DINOV2 = VisionConfig(
    model_type="dinov2",
    image_size=336,
    patch_size=14,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    num_positions=37 * 37,
    feature_layers=(-3, -9),
)
METACLIP = VisionConfig(
    model_type="clip",
    image_size=336,
    patch_size=14,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    feature_layers=(-3, -9),
)
TOWERS = {
    "clip": CLIP,
    "siglip": SIGLIP,
    "siglip2": SIGLIP2,
    "dinov2": DINOV2,
    "metaclip": METACLIP,
}
