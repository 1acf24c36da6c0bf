"""Tiny random models of transformers, saved, converted by the real converter and compared with the original."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from torch import Tensor

from molmo_ds import presets
from molmo_ds.batch import Batch, learnt_rows_of, windows_of
from molmo_ds.hub import load
from molmo_ds.hub.configs import base_of, fitted, text_config, vision_config
from molmo_ds.model.init import initial_parameter
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights.released_config import read_json
from molmo_ds.weights.tensor_files import TensorFolder

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5e5,
    "factor": 8.0,
    "attention_factor": 1.2,
    "original_max_position_embeddings": 8,
}
TEXTS = {
    "qwen2-7b": (transformers.Qwen2Config, {"num_key_value_heads": 2, "rms_norm_eps": 1e-6}),
    "llama3": (
        transformers.LlamaConfig,
        {
            "num_key_value_heads": 2,
            "rope_parameters": LLAMA3,
            "tie_word_embeddings": True,
            "head_dim": 16,
        },
    ),
    # heads wider than their share
    "qwen3": (transformers.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 12}),
    # windows as long as the test's texts: Molmo2 drops them; layers 1 and 3 are scaled
    "olmo3": (
        transformers.Olmo3Config,
        {
            "num_hidden_layers": 4,
            "sliding_window": 4096,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
            "rms_norm_eps": 1e-6,
        },
    ),
    "olmo": (transformers.OlmoConfig, {"clip_qkv": 0.4}),
    "olmo2": (transformers.Olmo2Config, {"rms_norm_eps": 1e-6}),
    # 32B shares keys and values, under norms over all heads
    "olmo2-32b": (transformers.Olmo2Config, {"num_key_value_heads": 2, "rms_norm_eps": 1e-6}),
    "olmoe": (
        transformers.OlmoeConfig,
        {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 16},
    ),
}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 84,
}
TOWERS = {
    "openai": (transformers.CLIPVisionConfig, {"patch_size": 14, "hidden_act": "quick_gelu"}),
    "metaclip": (transformers.CLIPVisionConfig, {"patch_size": 14, "hidden_act": "quick_gelu"}),
    "siglip": (
        transformers.SiglipVisionConfig,
        {"patch_size": 14, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "dinov2": (transformers.Dinov2Config, {"patch_size": 14, "mlp_ratio": 2}),
}
CHANGES = ("vision.image_size=84", "images.overlap_margins=[2,2]", "vision.feature_layers=[-1,-3]")


def save(kind: type, settings: dict, folder: Path) -> transformers.PreTrainedModel:
    """A random model, with norms and biases that are not ones and zeros, saved as transformers saves it."""
    config = kind(**settings)
    if kind in (
        transformers.CLIPVisionConfig,
        transformers.SiglipVisionConfig,
        transformers.Dinov2Config,
    ):
        model = transformers.AutoModel.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    source = torch.Generator().manual_seed(len(folder.name))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                torch.randn(p.shape, generator=source) * 0.15
                + (1.0 if ("norm" in name and p.ndim == 1) or "lambda" in name else 0.0)
            )
    model.save_pretrained(folder, max_shard_size="20KB")
    return model.eval()


def converted(folder: Path) -> Molmo:
    weights = TensorFolder(folder)
    model = Molmo(load.read_config(folder))
    model.load_state_dict({name: weights.read(name).float() for name in weights.names()})
    return model.eval()


def text_batch(ids: Tensor, model: Molmo) -> Batch:
    """Plain text, two documents, and the blank crop that every batch without pictures has."""
    b, t = ids.shape
    zeros, vision = torch.zeros(b, t, dtype=torch.int32), model.config.vision
    grid = vision.image_size // vision.patch_size
    windows = windows_of(1, grid, model.config.connector.pooling_size)
    return Batch(
        input_ids=ids,
        labels=ids,
        loss_weights=torch.ones(b, t),
        position_ids=torch.arange(t).expand(b, t),
        document_ids=zeros + 1,
        branch_ids=zeros,
        images=torch.zeros(1, grid**2, vision.patch_size**2 * 3),
        image_masks=torch.ones(1, grid**2),
        windows=windows,
        image_positions=torch.full(windows.shape[:1], -1),
        learnt_rows=learnt_rows_of(torch.ones(b, t)),
    )


def features(model: Molmo, pixels: Tensor) -> list[Tensor]:
    """Block outputs [N, S, D] of the tower, deepest last, for pixels [N, 3, H, W]."""
    n, c, h, w = pixels.shape
    p = model.config.vision.patch_size
    patches = (
        pixels.view(n, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, p * p * c)
    )
    hidden, out = model.vision.embeddings.tokens(patches), []
    for layer in model.vision.layers:
        hidden = layer.run(hidden)
        out.append(hidden)
    return out


@pytest.mark.parametrize(("text", "tower"), list(zip(TEXTS, itertools.cycle(TOWERS))))
def test_against_transformers(text: str, tower: str, tmp_path: Path) -> None:
    kind, settings = TEXTS[text]
    llm = save(kind, {**SMALL, **settings}, tmp_path / text)
    kind, settings = TOWERS[tower]
    eye = save(kind, {**EYE, **settings}, tmp_path / tower)
    pair = (text, tmp_path / text), (tower, tmp_path / tower)
    config = load.backbones(*pair, tmp_path / "out", CHANGES)
    assert config == load.read_config(tmp_path / "out")
    model = converted(tmp_path / "out")
    ids = torch.randint(0, 200, (2, 90), generator=torch.Generator().manual_seed(3))
    pixels = torch.randn(2, 3, 84, 84, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        want = llm(input_ids=ids, use_cache=False).logits
        got = model.logits(text_batch(ids, model))
        states = eye(pixel_values=pixels, output_hidden_states=True).hidden_states
        ours = features(model, pixels)
        exact = eye.double()(pixel_values=pixels.double(), output_hidden_states=True).hidden_states
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert len(ours) == config.vision.num_hidden_layers == (3 if tower == "openai" else 4)
    for i, one in enumerate(ours):  # transformers counts its embeddings as the first state
        # the residual stream is not normalised: how far float32 rounds there, transformers' own tells
        rounding = float((states[i + 1] - exact[i + 1]).abs().max())
        assert rounding < 2e-5
        torch.testing.assert_close(
            one.double(), exact[i + 1], atol=max(1e-5, 2 * rounding), rtol=1e-5
        )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("backbones")
    kind, settings = TEXTS["qwen2-7b"]
    save(kind, {**SMALL, **settings}, root / "text")
    kind, settings = TOWERS["openai"]
    save(kind, {**EYE, **settings}, root / "eye")
    return root / "text", root / "eye"


def test_what_the_backbones_lack(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Padding rows, the extra rows and the connector: drawn as a fresh model draws them, a head's padding is zero."""
    changes = (*CHANGES, "text.embedding_size=256")
    config = load.backbones(
        ("qwen2-7b", folders[0]), ("openai", folders[1]), tmp_path / "out", changes, seed=5
    )
    weights, source = TensorFolder(tmp_path / "out"), TensorFolder(folders[0])
    assert (config.text.vocab_size, config.text.embedding_size, config.images.resize) == (
        200,
        256,
        "clip",
    )
    embedding, head = weights.read("embed.embedding"), weights.read("head.lm_head.weight")
    assert torch.equal(embedding[:200], source.read("model.embed_tokens.weight"))
    assert embedding[200:].std() > 0.01 and not head[200:].any() and head[:200].any()
    for name in (
        "embed.new_embedding",
        "connector.pooling.q_proj.weight",
        "connector.projector.gate_proj.weight",
    ):
        fresh = initial_parameter(config, name, weights.shape(name), 5)
        assert torch.equal(weights.read(name), fresh) and 0.018 < fresh.std() < 0.022
    assert (
        not weights.read("connector.pad_embed").any()
        and not weights.read("connector.pooling.q_proj.bias").any()
    )
    assert set(weights.names()) == set(load.shapes_of(config))
    assert set(yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())) == {"model"}


@pytest.mark.parametrize("preset", ["molmo2_8b", "hemolmo_7b_d"])
def test_a_preset_of_another_family_is_what_is_made(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Family, windows, crops, frames and selection come from it, sizes and weights from the folders."""
    kind, settings = TEXTS["qwen3" if preset == "molmo2_8b" else "qwen2-7b"]
    save(kind, {**SMALL, **settings}, tmp_path / "text")
    kind, settings = TOWERS["siglip"]
    save(kind, {**EYE, **settings}, tmp_path / "eye")
    real = presets.get(preset)
    text = replace(
        text_config(read_json(tmp_path / "text")),
        image_attention=real.text.image_attention,
        max_position_embeddings=128,
    )
    small = replace(real, text=text)
    monkeypatch.setitem(presets.PRESETS, "small", lambda: small)
    pair = ("small", tmp_path / "text"), ("siglip2", tmp_path / "eye")
    config = load.backbones(
        *pair, tmp_path / "out", (*CHANGES[:2], "vision.feature_layers=[-1,-2]")
    )
    row = "zero" if preset == "molmo2_8b" else "learnt"
    assert config.connector == replace(real.connector, patch_row=row)
    assert (config.family, config.video, config.selection) == (
        real.family,
        real.video,
        real.selection,
    )
    assert config.images == replace(real.images, overlap_margins=(2, 2))
    assert config.text == text and config.vision.num_hidden_layers == 2
    assert load.read_config(tmp_path / "out") == config
    made = TensorFolder(tmp_path / "out")
    assert any(name.startswith("scorer.") for name in made.names()) == (preset != "molmo2_8b")
    ids = made.read("embed.embedding")
    assert torch.equal(ids, TensorFolder(tmp_path / "text").read("model.embed_tokens.weight"))


def test_released_sizes_are_recognised() -> None:
    """Published config.json values of the language models lead to the presets of the released Molmos."""
    olmo2 = {
        "model_type": "olmo2", "vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rope_theta": 500000,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "attention_bias": False,
    }  # fmt: skip
    assert text_config(olmo2) == presets.get("molmo_7b_o").text
    qwen2 = {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "use_sliding_window": False,
    }  # fmt: skip
    assert (
        replace(text_config(qwen2), max_position_embeddings=4096) == presets.get("molmo_7b_d").text
    )
    qwen3 = {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "head_dim": 128,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 1000000,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "attention_bias": False, "rope_scaling": None,
    }  # fmt: skip
    four = {"hidden_size": 2560, "intermediate_size": 9728, "rope_theta": 5000000}
    four |= {"tie_word_embeddings": True, "max_position_embeddings": 262144}
    yarn = {
        "rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    olmo3 = olmo2 | {
        "model_type": "olmo3", "vocab_size": 100278, "max_position_embeddings": 65536, "sliding_window": 4096,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8, "rope_scaling": yarn,
    }  # fmt: skip
    published = {"molmo2_8b": qwen3, "molmo2_4b": qwen3 | four, "molmo2_o_7b": olmo3}
    for name, values in (published | {"hemolmo_7b_d": qwen2}).items():
        assert fitted(text_config(values), name, Path("folder")) == presets.get(name).text
        assert base_of(name, "siglip2") == presets.get(name)
    with pytest.raises(ValueError, match="its head_dim is 64, not 128"):
        fitted(text_config(qwen3 | {"head_dim": 64}), "molmo2_8b", Path("folder"))
    assert base_of("hemolmo_7b_d", "openai") == presets.get("hemolmo_7b_d/clip")
    clip = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
    }
    clip |= {
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    }
    clip |= {"layer_norm_eps": 1e-5}
    assert vision_config({"vision_config": clip}, "openai")[0] == presets.TOWERS["clip"]
    assert vision_config(clip, "metaclip")[0] == presets.TOWERS["metaclip"]
    assert (
        vision_config(clip | {"image_size": 224}, "metaclip")[0].num_positions == 256
    )  # as published: resized to 24 x 24
    siglip = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    }
    # published without what is transformers' default
    siglip |= {"image_size": 384, "patch_size": 14}
    assert (
        vision_config({"model_type": "siglip", "vision_config": siglip}, "siglip")[0]
        == presets.TOWERS["siglip"]
    )
    tower, images = vision_config({"model_type": "siglip", "vision_config": siglip}, "siglip2")
    assert tower == presets.TOWERS["siglip2"]  # layers 24 and 18 of 27, as with the name siglip
    assert images.resize == "siglip"
    dino = {
        "model_type": "dinov2",
        "hidden_size": 1024,
        "mlp_ratio": 4,
        "num_hidden_layers": 24,
        "patch_size": 14,
    }
    dino |= {
        "num_attention_heads": 16,
        "image_size": 518,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    assert vision_config(dino, "dinov2")[0] == presets.TOWERS["dinov2"]


# width, layers, heads, key heads, FFN half, rows, theta, eps: the reference's later configurations
PUBLISHED = {
    "olmo2_7b": ("olmo2", 4096, 32, 32, 32, 11008, 100352, 5e5, 1e-6),
    "olmo2_13b": ("olmo2", 5120, 40, 40, 40, 13824, 100352, 5e5, 1e-6),
    "olmo2_32b": ("olmo2", 5120, 64, 40, 8, 27648, 100352, 5e5, 1e-6),
    "qwen2.5_1.5b": ("qwen2", 1536, 28, 12, 2, 8960, 151936, 1e6, 1e-6),
    "qwen2.5_3b": ("qwen2", 2048, 36, 16, 2, 11008, 151936, 1e6, 1e-6),
    "qwen2.5_7b": ("qwen2", 3584, 28, 28, 4, 18944, 152064, 1e6, 1e-6),
    "qwen2.5_14b": ("qwen2", 5120, 48, 40, 8, 13824, 152064, 1e6, 1e-5),
    "llama3.1_8b": ("llama", 4096, 32, 32, 8, 14336, 128256, 5e5, 1e-5),
    "molmoe_1b": ("olmoe", 2048, 16, 16, 16, 1024, 50304, 1e4, 1e-5),
    "molmo_7b_o": ("olmo2", 4096, 32, 32, 32, 11008, 100352, 5e5, 1e-6),
    "molmo_7b_d": ("qwen2", 3584, 28, 28, 4, 18944, 152064, 1e6, 1e-6),
    "molmo_72b": ("qwen2", 8192, 80, 64, 8, 29568, 152064, 1e6, 1e-5),
}
NAMES = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "vocab_size", "rope_theta", "rms_norm_eps"),
)


def test_a_folder_fits_the_preset_of_its_language_model() -> None:
    assert set(PUBLISHED) >= set(presets.LANGUAGE_MODELS)
    for preset, sizes in PUBLISHED.items():
        values = dict(zip(NAMES, sizes)) | {"max_position_embeddings": 32768}
        values |= {"num_experts": 64, "num_experts_per_tok": 8} if preset == "molmoe_1b" else {}
        if preset == "llama3.1_8b":
            values["rope_scaling"] = LLAMA3 | {"original_max_position_embeddings": 8192}
            del values["rope_scaling"]["rope_theta"]
        wanted = presets.get(preset).text
        assert fitted(text_config(values), preset, Path("here")) == wanted
        assert wanted.embedding_size - sizes[6] in (0, 128)
        with pytest.raises(
            ValueError,
            match=f"not the language model of the preset {preset}: its hidden_size is 64",
        ):
            fitted(replace(text_config(values), hidden_size=64), preset, Path("here"))


def test_a_preset_decides_rows_and_positions(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = replace(
        text_config(read_json(folders[0])), embedding_size=256, max_position_embeddings=64
    )
    small = replace(presets.tiny(), text=text)
    monkeypatch.setitem(presets.PRESETS, "qwen2.5_7b", lambda vision="clip": small)
    config = load.backbones(
        ("qwen2.5_7b", folders[0]), ("openai", folders[1]), tmp_path / "out", CHANGES
    )
    assert config.text == small.text
    assert TensorFolder(tmp_path / "out").shape("embed.embedding")[0] == 256


def test_faults(folders: tuple[Path, Path], tmp_path: Path) -> None:
    text, eye = folders
    out = tmp_path / "out"
    faults = {
        "'bert' is not supported": (
            ("bert", make_config(tmp_path / "bert", "bert")),
            ("openai", eye),
            CHANGES,
        ),
        "'olmo2' does not fit": (("olmo2", text), ("openai", eye), CHANGES),
        "no vision tower 'eva'": (("qwen2", text), ("eva", eye), CHANGES),
        "is a siglip model and the folder holds 'clip'": (
            ("qwen2", text),
            ("siglip", eye),
            CHANGES,
        ),
        "There is no folder": (("qwen2", tmp_path / "nowhere"), ("openai", eye), CHANGES),
        r"has no tensor 'model.layers.2": (
            ("qwen2", text),
            ("openai", eye),
            (*CHANGES, "text.num_hidden_layers=3"),
        ),
        r"gate_proj.weight. has shape \[44, 32\] and the configuration asks for \[40, 32\]": (
            ("qwen2", text),
            ("openai", eye),
            (*CHANGES, "text.intermediate_size=40"),
        ),
    }
    for sentence, (llm, vision, changes) in faults.items():
        with pytest.raises(ValueError, match=sentence):
            load.backbones(llm, vision, out, changes)
        assert not list(tmp_path.glob("*out*"))


def make_config(folder: Path, kind: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    return folder
