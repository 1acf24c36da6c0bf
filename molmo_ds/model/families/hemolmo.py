"""HeMolmo itself: the reference's configuration as a MolmoConfig. No weights of it were ever released.

Source: mattw-ai2/robo_mm_olmo_gantry at a1b4426, olmo/models/he_molmo.
"""

from dataclasses import replace
from typing import Any

from molmo_ds.architecture import MolmoConfig, SelectionConfig
from molmo_ds.model.families import molmo2, molmo2_reference
from molmo_ds.settings import in_sentences

SCORERS = {"linear": "linear", "mlp": "mlp", "prior_only": "prior"}
MEANS = {"batch-mean": "batch", "example-mean": "example", "loss-mean": "example_means"}
UNUSED = {  # settings that no golden and no script of the reference turns on, and their values
    "token_scorer": {
        "high_res_patch_prior": True,
        "learned_rescaling": None,
        "low_to_high_interpolation_factor": 2,
        "source": "all_layers",
        "unconditioned": False,
        "vector_query": "from_image_end_token",
    },
    "token_selector": {"hard": False, "noise": 0.0, "dropout": 0, "attention_scaling": None},
    "mm_preprocessor": {
        "crop_mode": "overlap-and-resize-c2",
        "image_pooling_h": 2,
        "image_pooling_w": 2,
        "low_res_from_high": None,
        "low_res_from_low": 2,
    },
}


@in_sentences("The model's configuration")
def from_reference(values: dict[str, Any]) -> MolmoConfig:
    """The `model` part of the reference's config.yaml as a MolmoConfig; ValueError for what no HeMolmo used."""
    scorer = values["token_scorer"]
    selector = values["token_selector"]
    molmo2.refuse_unknown(values, {"shared_low_high_embedding": True})
    for part, settings in UNUSED.items():
        molmo2.refuse_unknown(values[part], settings)
    if scorer["selection_model"] not in SCORERS:
        raise ValueError(
            f"selection_model is '{scorer['selection_model']}'; supported: {', '.join(SCORERS)}."
        )
    if selector["loss"] not in MEANS:
        raise ValueError(f"loss is '{selector['loss']}'; supported: {', '.join(MEANS)}.")
    pictures = values["mm_preprocessor"]
    made = molmo2_reference.from_reference(values | {"mm_preprocessor": {"image": pictures}})
    asked = "none" if not scorer["vector_query"] else "plain"
    first = scorer["bp_low_res_start"]
    end = scorer["bp_low_res_end"]
    selection = SelectionConfig(
        picks=pictures["num_high_res_features"],
        scorer=SCORERS[scorer["selection_model"]],
        scored_layers=scorer["n_low_res_layers"],
        norm=scorer["importance_norm"],
        normalize=scorer["normalize_importance_scores"],
        four_scores=scorer["four_scores_per_low_res_patch"],
        vector_query="scaled" if scorer["vector_query_scaling"] else asked,
        first_pass_layers=(first, end) if end > first else None,
        learn_embedding=scorer["bp_low_res_embed"],
        learn_windows=scorer["bp_patch_prior"],
        scored_dropout=scorer["low_res_features_drop"],
        window_dropout=scorer["high_res_patch_prior_drop"] or 0.0,
        rescale=float(selector["rescale"]),
        offset=float(selector["offset"]),
        target=selector["target_scale"],
        loss_weight=selector["loss_weight"],
        loss_power=float(selector["loss_pow"]),
        loss_mean=MEANS[selector["loss"]],
        saturation_loss=float(selector.get("saturation_loss", 0)),
        scale_at_test=selector["scale_at_test"],
        attention_scaling=scorer["attention_scaling"],
    )
    images = replace(made.images, use_col_tokens=pictures["use_col_tokens"])
    return replace(made, family="hemolmo", images=images, selection=selection)
