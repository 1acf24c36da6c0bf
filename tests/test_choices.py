"""Every choice of every setting has a reader: what it selects is built or run, and differs from the other choices."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from numpy.random import RandomState

from molmo_ds import architecture, settings
from molmo_ds.architecture import MolmoConfig, SelectionConfig
from molmo_ds.batch import Batch, windows_of
from molmo_ds.config import LoraConfig, OptimConfig, PromptConfig, RunConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order.loader import Mixture, rank_lanes, sequences
from molmo_ds.data.order.packing import collate
from molmo_ds.data.sample.pictures import images
from molmo_ds.data.sample.pictures.layout import Geometry
from molmo_ds.data.sample.pointed import Scene
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.times import frame_times
from molmo_ds.engine import compiled, ds_config, optim, optimizers
from molmo_ds.hub.configs import text_config
from molmo_ds.model import families, lora
from molmo_ds.model.molmo import Molmo, component, recomputed
from molmo_ds.model.selection import Scorer
from molmo_ds.model.vision import ACTIVATIONS
from molmo_ds.testing.streams import FakeBuilder, make_shards, run_config
from molmo_ds.testing.text_sample import text_sample

CHOICES = {
    setting.name: setting.choices for setting in settings.settings(RunConfig) if setting.choices
}
NETWORK = {  # setting -> how many of its choices compute another loss
    "model.connector.pooling": 3,
    "model.connector.projector": 2,
    "model.connector.padding_embed": 4,
    "model.text.norm_type": 2,
    "model.text.image_attention": 2,  # image ids, which the data makes, tell the last two apart
    "model.vision.model_type": 3,
    "model.vision.hidden_act": 3,
    # metaclip has clip's statistics and differs where pictures are resized
    "model.images.resize": 3,
}
PROMPTS = (
    "data.prompts.prompt_templates",
    "data.prompts.message_format",
    "data.prompts.system_prompt",
    "data.prompts.pointing_format",
)
OTHERS = (
    "model.connector.patch_row",  # tests/weights/test_patch_row.py
    "model.selection.scorer",
    "model.selection.vector_query",
    "model.selection.loss_mean",
    "model.family",
    "model.text.model_type",
    "model.images.crop_mode",
    "model.video.frame_sample_mode",
    "data.packing",
    "optim.name",
    "lora.components",
)
OTHERS += ("precision", "activation_checkpointing", "compile_mode")
AGAIN = tuple(f"evaluators.<name>.{name.removeprefix('data.')}" for name in PROMPTS)


def test_no_choice_is_forgotten() -> None:
    assert set(CHOICES) == {*NETWORK, *PROMPTS, *OTHERS, *AGAIN}


def made_up(config: MolmoConfig) -> Batch:
    """One sequence with a picture whose patches are partly padding."""
    draw = torch.Generator().manual_seed(1)
    size = config.vision.image_size
    side = size // config.vision.patch_size
    pooled = (-(-side // config.connector.pooling_size)) ** 2
    length = pooled + 8
    ids = torch.randint(0, config.text.vocab_size, (length,), generator=draw)
    sample = replace(
        text_sample(ids),
        labels=torch.randint(0, config.text.vocab_size, (length,), generator=draw),
        loss_weights=torch.ones(length),
        image_ids=(torch.arange(length) < pooled).int(),
        images=torch.randint(0, 256, (1, size, size, 3), generator=draw, dtype=torch.uint8),
        image_masks=torch.arange(side * side).remainder(3)[None] / 2,
        windows=windows_of(1, side, config.connector.pooling_size),
        image_positions=torch.arange(pooled),
    )
    return collate([[sample]], length)


@pytest.mark.parametrize("name", NETWORK)
def test_each_choice_of_a_network_is_another_network(name: str) -> None:
    losses = set()
    for choice in CHOICES[name]:
        model = Molmo(
            settings.load(None, [f"{name}={choice}", "model.connector.initializer_range=0.1"]).model
        )
        model.reset_parameters(0)
        with torch.no_grad():
            if model.connector.pad_embed is not None:  # 0 at first
                model.connector.pad_embed.normal_(generator=torch.Generator().manual_seed(2))
            losses.add(round(float(sum(model(made_up(model.config))[:2])), 4))
    assert len(losses) == NETWORK[name], losses


@pytest.mark.parametrize("name", PROMPTS)
def test_each_choice_of_a_prompt_is_another_text(name: str) -> None:
    annotations = (
        {"style": "pointing", "label": "cats", "points": [[1, 2]]},
        {"style": "vqa2", "question": "Why?", "answer": "Because of the weather."},
        {"style": "vqa2", "question": "Why?", "options": ["sun", "rain"], "answer_index": 1},
    )
    if name.endswith("pointing_format"):  # two groups show what parts them
        points = [{"image": 1, "points": [[1, 2]]}, {"image": 2, "points": [[3, 4]]}]
        annotations = ({"style": "pointing", "label": "cats", "point_groups": points},)
    seen = set()
    for choice in CHOICES[name]:
        formatter = PromptFormatter(replace(PromptConfig(), **{name.rsplit(".", 1)[-1]: choice}))
        scene = Scene([(10, 10)] * 2)
        try:
            many = [
                formatter.messages(one, RandomState(seed), (10, 10), scene=scene)
                for one in annotations
                for seed in range(40)
            ]
        except BadSample as error:  # which one format cannot say
            many = str(error)
        seen.add(str(many))
    assert len(seen) == len(CHOICES[name])


def test_each_packing_makes_other_sequences(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "shards", 40)
    seen = set()
    for packing in CHOICES["data.packing"]:
        config = run_config({"a": folder}, packing=packing, global_batch=1)
        mixture = Mixture.open(config, FakeBuilder())
        stream = sequences(config, mixture, rank_lanes(config, 0, 1), {})
        rows = [next(stream) for _ in range(6)]
        seen.add(str([(row.row.input_ids.shape[1], row.references) for row in rows]))
    assert len(seen) == len(CHOICES["data.packing"])


def test_each_crop_mode_cuts_otherwise() -> None:
    crops = {}
    for mode in CHOICES["model.images.crop_mode"]:
        words = ["preset=molmo_7b_d", f"model.images.crop_mode={mode}"]
        crops[mode] = Geometry.of(settings.load(None, words).model).layout(672, 672).crops
    assert crops == {"overlap-and-resize-c2": 1 + 3 * 3, "resize": 1}


def test_each_family_lays_pictures_out_otherwise() -> None:
    seen = set()
    families = set(CHOICES["model.family"])
    for family in families:
        preset = "hemolmo_7b_d" if family == "hemolmo" else "molmo2_8b"
        words = [f"preset={preset}", f"model.family={family}"]
        layout = Geometry.of(settings.load(None, words).model).layout(700, 700)
        seen.add(str((layout.tokens.tolist(), layout.windows.tolist())))
    assert len(seen) == len(families)


def test_each_scorer_is_another_network() -> None:
    text = settings.load(None, ["preset=tiny"]).model.text
    for name in ("scorer", "vector_query"):
        shapes = set()
        for choice in CHOICES[f"model.selection.{name}"]:
            scorer = Scorer(text, SelectionConfig(**{name: choice}))
            shapes.add(str({key: list(p.shape) for key, p in scorer.named_parameters()}))
        assert len(shapes) == len(CHOICES[f"model.selection.{name}"])
    # of two samples one has a single pick
    importance = torch.tensor([[0.9, 0.5], [0.2, 0.1]])
    shown = torch.tensor([[True, True], [True, False]])
    losses = {}
    for choice in CHOICES["model.selection.loss_mean"]:
        scorer = Scorer(text, SelectionConfig(loss_mean=choice, loss_weight=1.0))
        losses[choice] = round(float(scorer.loss(importance.logit(), importance, shown)), 5)
    want = {"batch": abs(1.6 / 3 - 0.7), "example": 0.25, "example_means": abs(0.45 - 0.7)}
    want["example"] = (abs(0.7 - 0.7) + abs(0.2 - 0.7)) / 2
    assert losses == {choice: round(loss, 5) for choice, loss in want.items()}


def test_each_mode_takes_other_frames() -> None:
    name = "model.video.frame_sample_mode"
    times = [
        frame_times(architecture.VideoConfig(frame_sample_mode=mode), 3.0).tolist()
        for mode in CHOICES[name]
    ]
    assert len(set(map(str, times))) == len(CHOICES[name])


def test_each_other_choice_is_in_the_table_that_reads_it() -> None:
    assert set(CHOICES["model.vision.hidden_act"]) == set(ACTIVATIONS)
    assert (
        set(CHOICES["model.images.resize"])
        == set(images._INTERPOLATION)
        == set(architecture.PIXEL_STATISTICS)
    )
    kinds = {"adamw": optimizers.ScalingAdamW, "muon": optimizers.MuonAndAdamW}
    kinds |= {"sgd": torch.optim.SGD}
    assert set(CHOICES["optim.name"]) == set(kinds)
    for name, kind in kinds.items():
        weights = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}]
        assert type(optim.build_optimizer(weights, OptimConfig(name=name))) is kind
    expected = {"auto": (False, True), "fp32": (False, False), "bf16": (True, True)}
    runs = {precision: RunConfig(precision=precision) for precision in CHOICES["precision"]}
    assert {
        p: (ds_config.uses_bf16(r, False), ds_config.uses_bf16(r, True)) for p, r in runs.items()
    } == expected


def test_each_family_of_decoders_is_known_to_the_hub() -> None:
    same = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    same |= {
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    # OLMo 3 scales some layers of OLMo 2, so scaling tells them apart
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
    same |= {"rope_parameters": yarn | {"rope_theta": 1e4}}
    made = {
        kind: text_config({"model_type": kind, **same}) for kind in CHOICES["model.text.model_type"]
    }
    assert {kind: text.model_type for kind, text in made.items()} == {kind: kind for kind in made}
    # two families of one network differ in the names of its tensors
    told_apart = set()
    for kind, text in made.items():
        names = [rule.theirs for rule in families.decoder(kind).rename_table(text, ())]
        told_apart.add((str(replace(text, model_type="qwen2")), str(names)))
    assert len(told_apart) == len(made)


def test_each_component_gets_adapters() -> None:
    for part in CHOICES["lora.components"]:
        network = Molmo(settings.load(None, []).model)
        lora.adapt(network, LoraConfig(components=(part,)))
        names = {name for name, _ in network.named_parameters() if ".lora_" in name}
        assert names and {component(name) for name in names} == {part}


def test_each_compile_mode_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **given: (asked.append(given), function)[1]
    )
    for mode in CHOICES["compile_mode"]:
        compiled.compile_layers(Molmo(settings.load(None, []).model), mode)
        torch._inductor.list_mode_options(mode)  # raises for a mode that torch does not know
    kinds = 2  # a ViT block and a decoder layer
    assert [one["mode"] for one in asked] == [None] * kinds + ["max-autotune-no-cudagraphs"] * kinds


def test_each_checkpointing_recomputes_other_rows() -> None:
    rows = (*(f"{part}layers.{i}" for part in ("vision.", "") for i in range(5)), "head")
    seen = {
        mode: tuple(recomputed(row, mode) for row in rows)
        for mode in CHOICES["activation_checkpointing"]
    }
    assert seen.pop("offload") == seen["full"], "offload keeps the inputs elsewhere"
    assert len(set(seen.values())) == len(seen) == 8
