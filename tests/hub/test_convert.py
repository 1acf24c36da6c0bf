"""The convert tool: every released format in and out without changing a bit, and what it says when it cannot."""

import json
import math
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hub_models import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from molmo_ds import presets
from molmo_ds.architecture import ConnectorConfig, MolmoConfig, SelectionConfig
from molmo_ds.cli.convert import main
from molmo_ds.config import DataConfig, PromptConfig, RunConfig
from molmo_ds.data.tokens import Tokenizer
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.hub import export, load, molmo2_code
from molmo_ds.model.families import molmo, molmo2, molmo_names
from molmo_ds.settings import save
from molmo_ds.testing import synthetic
from molmo_ds.testing.random_weights import random_state, weights_folder
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights import rename
from molmo_ds.weights.tensor_files import INDEX, TensorFolder
from molmo_ds.weights.tensor_writer import write_tensors

ROOT = Path(__file__).parents[2]

TOWER = (
    "vision.image_size=84", "vision.hidden_size=32", "vision.intermediate_size=64", "vision.num_hidden_layers=3",
    "vision.num_attention_heads=2", "vision.feature_layers=[-1,-2]", "images.overlap_margins=[2,2]",
    "images.max_crops=4", "images.exact=true",
)  # fmt: skip


def released(config: MolmoConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: t.contiguous()
        for key, t in rename.to_theirs(molmo_names.released(config), state.__getitem__)
    }


def released_folder(folder: Path, config: MolmoConfig, state: dict[str, Tensor], form: str) -> Path:
    """A folder as Ai2 released it: no word about the tower, weights in one of four forms."""
    folder.mkdir()
    values = molmo.to_released(config, "float32")
    for name in ("molmo_ds", "auto_map"):
        del values[name]
    if config.text.num_experts:  # MolmoE's config.json speaks the reference's language
        for name in (
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "intermediate_size",
            "embedding_size",
        ):
            values.pop(name)
        values |= {
            "embedding_size": 512,
            "attention_layer_norm": True,
            "qkv_bias": False,
            "mlp_ratio": 1,
        }
        values |= {
            "mlp_hidden_size": None,
            "max_position_embeddings": 4096,
            "architectures": ["OLMoForCausalLM"],
        }
    (folder / "config.json").write_text(json.dumps(values))
    state = released(config, state)
    parts = [dict(list(state.items())[i::2]) for i in range(2)]
    if form == "one":
        save_file(state, folder / "model.safetensors")
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        end, index = (
            ("safetensors", INDEX) if form == "shards" else ("bin", "pytorch_model.bin.index.json")
        )
        for i, part in enumerate(parts):
            (save_file if form == "shards" else torch.save)(part, folder / f"part{i}.{end}")
        where = {key: f"part{i}.{end}" for i, part in enumerate(parts) for key in part}
        (folder / index).write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize(
    ("text", "form", "dtype"),
    [("qwen2", "shards", torch.bfloat16), ("olmo2", "one", torch.float32), ("olmoe", "bin", torch.float32),
     ("olmoe", "bins", torch.bfloat16), ("qwen2", "bin", torch.float32)],
)  # fmt: skip
def test_from_hub_and_back(
    text: str, form: str, dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny(text)
    state = {name: t.to(dtype) for name, t in random_state(config).items()}
    source = released_folder(tmp_path / "source", config, state, form)
    assert main(["from-hub", str(source), str(tmp_path / "ours"), *TOWER]) == 0
    assert load.read_config(tmp_path / "ours") == replace(
        config,
        text=replace(
            config.text,
            max_position_embeddings=load.read_config(
                tmp_path / "ours"
            ).text.max_position_embeddings,
        ),
    )
    ours = TensorFolder(tmp_path / "ours")
    assert set(ours.names()) == set(state)
    for name in state:
        assert ours.read(name).dtype == dtype and torch.equal(ours.read(name), state[name])
    assert (
        main(["to-hub", str(tmp_path / "ours"), str(tmp_path / "back"), "--shard-gb", "3e-5"]) == 0
    )
    assert "vLLM cannot serve it" in capsys.readouterr().out
    shards = list((tmp_path / "back").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "back" / INDEX).read_text())["weight_map"]
    back = {key: t for shard in shards for key, t in load_file(shard).items()}
    want = released(config, state)
    assert len(shards) > 3 and {shard.name for shard in shards} == set(index.values())
    assert set(back) == set(want) == set(index)
    assert all(back[key].dtype == dtype and torch.equal(back[key], want[key]) for key in want)
    # its own field says all
    assert main(["from-hub", str(tmp_path / "back"), str(tmp_path / "again")]) == 0
    assert load.read_config(tmp_path / "again") == load.read_config(tmp_path / "ours")


def test_dtypes(tmp_path: Path) -> None:
    """bf16 is rounding to nearest; what bf16 gave comes back from fp32 unchanged."""
    config = tiny()
    state = random_state(config)
    folder = weights_folder(tmp_path / "ours", config, state)
    export.to_hub(folder, tmp_path / "half", "bf16")
    load.from_hub(tmp_path / "half", tmp_path / "half_ours")
    export.to_hub(tmp_path / "half_ours", tmp_path / "full", "fp32")
    load.from_hub(tmp_path / "full", tmp_path / "full_ours")
    half, full = TensorFolder(tmp_path / "half_ours"), TensorFolder(tmp_path / "full_ours")
    for name in state:
        assert torch.equal(half.read(name), state[name].bfloat16())
        assert torch.equal(full.read(name), state[name].bfloat16().float())
    kinds = [
        json.loads((tmp_path / name / "config.json").read_text())["torch_dtype"]
        for name in ("half", "full")
    ]
    assert kinds == ["bfloat16", "float32"]


def test_from_reference(tmp_path: Path) -> None:
    """config.yaml with the model under `model`, and model.pt; Llama blocks with separate projections."""
    config = tiny(
        "llama", "siglip", ConnectorConfig(pooling="attention", padding_embed="pad_embed")
    )
    state = random_state(config)
    folder = tmp_path / "reference"
    folder.mkdir()
    vision, text = config.vision, config.text
    tower = {
        "image_model_type": "siglip", "image_default_input_size": [98, 98], "image_patch_size": 14, "image_emb_dim": 32,
        "image_num_heads": 2, "image_num_layers": 3, "image_mlp_dim": 64, "image_num_pos": 49, "image_norm_eps": 1e-6,
        "image_mlp_activations": "gelu_pytorch_tanh", "resize_mode": "siglip",
    }  # fmt: skip
    model = {
        "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 88, "block_type": "llama",
        "vocab_size": 512, "embedding_size": 512, "rope_theta": 1e6, "layer_norm_type": "rms", "layer_norm_eps": 1e-5,
        "max_sequence_length": 4096, "vision_backbone": tower, "vit_layers": [-1, -3], "image_pooling_2d": "attention",
        "image_projector": "mlp", "image_padding_embed": "pad_embed", "max_crops": 4, "overlap_margins": [2, 2],
        "additional_vocab_size": 128, "activation_type": "llama_swiglu", "weight_tying": False, "rope": True,
        "include_bias": False, "crop_mode": "overlap-and-resize-c2", "attention_dropout": 0.0, "residual_dropout": 0.0,
        "embedding_dropout": 0.0, "prompt_type": "none", "message_formatting": "none",
        "system_prompt_kind": "style_and_length",
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"run_name": "x", "model": model}))
    theirs = dict(rename.to_theirs(molmo_names.reference(config, "llama"), state.__getitem__))
    torch.save({key: t.clone() for key, t in theirs.items()}, folder / "model.pt")
    got = load.from_reference(folder, tmp_path / "ours", ("images.exact=true",))
    assert got == replace(config, text=text, vision=vision)
    ours = TensorFolder(tmp_path / "ours")
    assert all(torch.equal(ours.read(name), state[name]) for name in state)
    # a captioner's checkpoint is asked as it was trained
    assert load.prompts_of(tmp_path / "ours") == PromptConfig(
        prompt_templates="none", message_format="none", system_prompt="style_and_length"
    )


def test_the_form_of_a_question_goes_along(tmp_path: Path, tokenizer: Path) -> None:
    """From a run to its weights alone, to an export and back."""
    config = tiny("olmo2")
    folder = weights_folder(tmp_path / "ours", config, random_state(config))
    assert load.prompts_of(folder) == PromptConfig()  # a folder that says nothing
    asked = PromptConfig(message_format="none", always_start_with_space=False)
    data = DataConfig(tokenizer=str(tokenizer), prompts=asked)
    save(RunConfig(model=config, data=data), folder / "config.yaml")
    (folder / "checksums.json").unlink()
    load.consolidate(folder, tmp_path / "weights")
    assert load.prompts_of(tmp_path / "weights") == asked
    export.to_hub(tmp_path / "weights", tmp_path / "hub")
    load.from_hub(tmp_path / "hub", tmp_path / "back")
    assert load.prompts_of(tmp_path / "back") == asked
    values = yaml.safe_load((tmp_path / "back/config.yaml").read_text())
    assert set(values) == {"model", "data"} and set(values["data"]) == {"prompts"}


def test_tokenizer_of_a_run(tmp_path: Path, tokenizer: Path) -> None:
    """A run's config.yaml names the tokenizer; the export completes it and says how a text ends."""
    config = tiny("olmo2")
    folder = weights_folder(tmp_path / "ours", config, random_state(config))
    save(RunConfig(model=config, data=DataConfig(tokenizer=str(tokenizer))), folder / "config.yaml")
    (folder / "checksums.json").unlink()  # as the sentence about a changed file says
    export.to_hub(folder, tmp_path / "hub")
    words = Tokenizer(tmp_path / "hub", 500)
    assert (words.words, words.eos) == (300, 299)
    from_file = json.loads((tmp_path / "hub" / "tokenizer.json").read_text())["added_tokens"]
    ids = {entry["content"]: entry["id"] for entry in from_file}
    assert ids["|<EXTRA_TOKENS_0>|"] == 300 and ids["<im_start>"] == 500 and ids["<|image|>"] == 504
    ends = json.loads((tmp_path / "hub" / "generation_config.json").read_text())
    assert ends == {"bos_token_id": 299, "eos_token_id": 299, "pad_token_id": 299}
    # a complete tokenizer stays as it is
    export.to_hub(folder, tmp_path / "again", tokenizer=tmp_path / "hub")
    for name in ("tokenizer.json", "generation_config.json", "preprocessor_config.json"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "hub" / name).read_text()


def test_pad_embed_for_vllm(tmp_path: Path) -> None:
    """A model without padding embedding is exported with zeros in its place, and comes back without it."""
    config = tiny(connector=ConnectorConfig(padding_embed="none"))
    state = random_state(config)
    export.to_hub(weights_folder(tmp_path / "ours", config, state), tmp_path / "hub")
    pad = TensorFolder(tmp_path / "hub").read(export.PAD_EMBED)
    assert pad.shape == (2, 64) and not pad.any()
    assert load.from_hub(tmp_path / "hub", tmp_path / "back") == config
    assert set(TensorFolder(tmp_path / "back").names()) == set(state)


def test_a_family_without_a_format_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny(), family="hemolmo", selection=SelectionConfig())
    folder = weights_folder(tmp_path / "ours", config, random_state(config))

    def refuse(*_: object) -> None:
        raise AssertionError("tensors were written")

    monkeypatch.setattr(export, "write_tensors", refuse)
    with pytest.raises(ValueError, match="No format of family hemolmo was ever released"):
        export.to_hub(folder, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_code_of_a_released_molmo2_goes_along(tmp_path: Path) -> None:
    """Its files, and its classes in each file of settings that is there; refused before anything is written."""
    code = tmp_path / "released"
    code.mkdir()
    for name in molmo2_code.FILES:
        (code / f"{name}.py").write_text(f"# {name}\n")
    config = presets.get("tiny_molmo2")
    ours = weights_folder(tmp_path / "molmo2", config, random_state(config))
    export.to_hub(ours, tmp_path / "out", code=code)
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["auto_map"]["AutoConfig"] == "configuration_molmo2.Molmo2Config"
    assert said["model_type"] == "molmo2" and "molmo_ds" in said
    assert (tmp_path / "out/modeling_molmo2.py").read_text() == "# modeling_molmo2\n"
    assert not (tmp_path / "out/preprocessor_config.json").exists()  # there is no tokenizer
    (code / "processing_molmo2.py").unlink()
    with pytest.raises(ValueError, match="lacks processing_molmo2.py; give a folder of a released"):
        export.to_hub(ours, tmp_path / "other", code=code)
    molmo_folder = weights_folder(tmp_path / "molmo", tiny(), random_state(tiny()))
    with pytest.raises(ValueError, match="--code is for a Molmo2"):
        export.to_hub(molmo_folder, tmp_path / "other", code=code)
    assert not (tmp_path / "other").exists()


def test_faults(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One sentence, the key and both shapes; nothing is left behind."""
    config = tiny()
    state = random_state(config)
    key = "model.transformer.blocks.1.att_proj.weight"

    def broken(name: str, **changes: Tensor | None) -> Path:
        folder = released_folder(tmp_path / name, config, state, "one")
        weights = load_file(folder / "model.safetensors") | {
            k: t for k, t in changes.items() if t is not None
        }
        save_file(
            {k: t for k, t in weights.items() if changes.get(k, t) is not None},
            folder / "model.safetensors",
        )
        return folder

    def cut(name: str, where: int) -> Path:
        folder = released_folder(tmp_path / name, config, state, "shards")
        shard = folder / "part1.safetensors"
        shard.write_bytes(shard.read_bytes()[:where])
        return folder

    other = released_folder(tmp_path / "other", config, state, "one")
    (other / "config.json").write_text(json.dumps({"model_type": "llava", "hidden_size": 32}))
    lost = released_folder(tmp_path / "lost", config, state, "shards")
    (lost / "part0.safetensors").unlink()
    torn = released_folder(tmp_path / "torn", config, state, "bin")
    (torn / "pytorch_model.bin").write_bytes((torn / "pytorch_model.bin").read_bytes()[:-300])
    (tmp_path / "empty").mkdir()
    faults = {
        f"has no tensor '{key}', which should have shape [64, 32]": broken(
            "missing", **{key: None}
        ),
        f"'{key}' has shape [64, 31] and the configuration asks for [64, 32]": broken(
            "shape", **{key: torch.ones(64, 31)}
        ),
        "holds a tensor 'model.extra' [3]": broken("extra", **{"model.extra": torch.ones(3)}),
        "part1.safetensors is cut short": cut("data", -100),
        "is cut short: its header": cut("header", 60),
        "part0.safetensors, which is not there": lost,
        "cannot be read as a PyTorch checkpoint": torn,
        "type 'llava', which is not a released Molmo": other,
        "has no config.json": tmp_path / "empty",
        "There is no folder": tmp_path / "nowhere",
    }
    for sentence, folder in faults.items():
        assert main(["from-hub", str(folder), str(tmp_path / "out"), *TOWER]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert sentence in error and error.startswith("convert: ") and error.endswith(".")
        assert not list(tmp_path.glob("*out*"))
    good = released_folder(tmp_path / "good", config, state, "one")
    assert main(["from-hub", str(good), str(good), *TOWER]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["from-hub", str(good), str(tmp_path / "out"), "vision.depth=3"]) == 1
    assert "There is no setting 'vision.depth'" in capsys.readouterr().err

    ours = weights_folder(
        tmp_path / "ours", config, {k: t for k, t in state.items() if "layers.1.mlp.up" not in k}
    )
    assert main(["to-hub", str(ours), str(tmp_path / "out")]) == 1
    sentence = "has no tensor 'layers.1.mlp.up_proj.weight', which should have shape [44, 32]"
    assert sentence in capsys.readouterr().err and not list(tmp_path.glob("*out*"))


def test_header_grows_beyond_its_room(tmp_path: Path) -> None:
    """A shard is closed before its header is full, and readers of others take the padded headers."""
    tensors = {
        f"a.rather.long.name.of.a.tensor.{i}": torch.full((2,), float(i)) for i in range(3000)
    }
    tmp = tmp_path / "many"
    tmp.mkdir()
    write_tensors(tmp, tensors.items())
    shards = sorted(tmp.glob("*.safetensors"))
    assert len(shards) == 2
    assert {k: float(t[0]) for s in shards for k, t in load_file(s).items()} == {
        k: float(t[0]) for k, t in tensors.items()
    }
    length = struct.unpack("<Q", shards[0].read_bytes()[:8])[0]
    assert length % 8 == 0


# Memory of the process's own: pages of mapped files, which VmHWM counts too, come and go as the kernel likes. A fixed
# threshold makes malloc give every tensor back when it is freed.
WATCHED = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
WATCH = """
import sys, threading, time, torch
torch.set_num_threads(1)
def held():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
def watch():
    while True:
        peak[0] = max(peak[0], held())
        time.sleep(0.0005)
def watched():
    threading.Thread(target=watch, daemon=True).start()
    peak[0] = held()
    return peak[0]
peak = [0]
"""

MEMORY = """
from molmo_ds.hub import export, load, molmo2_code
load.from_hub(sys.argv[1], sys.argv[2] + "/warm"), export.to_hub(sys.argv[2] + "/warm", sys.argv[2] + "/warm_hub")
before = watched()
export.to_hub(sys.argv[3], sys.argv[2] + "/hub", shard_bytes=24_000_000)
load.from_hub(sys.argv[2] + "/hub", sys.argv[2] + "/back")
print(peak[0] - before)
"""


def test_memory(tmp_path: Path) -> None:
    """A model of 130 MB in shards of 24 MB, largest tensor 8.4 MB: that tensor and the parts it is made of are held."""
    small, text = tiny(), tiny().text
    config = replace(
        small,
        text=replace(
            text,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=8,
            num_attention_heads=8,
        ),
    )
    folder = tmp_path / "big"
    shapes = load.shapes_of(config)
    load.write_weights(
        folder, config, ((n, torch.full(s, 0.5)) for n, s in shapes.items()), None, len(shapes)
    )
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert size > 120e6
    export.to_hub(weights_folder(tmp_path / "ours", small, random_state(small)), tmp_path / "small")
    command = [
        sys.executable,
        "-c",
        WATCH + MEMORY,
        str(tmp_path / "small"),
        str(tmp_path),
        str(folder),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120, env=WATCHED
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 2.5 * 8.4e6
    assert len(list((tmp_path / "hub").glob("model-*.safetensors"))) > 5


CONSOLIDATE = """
from molmo_ds.cli.convert import main
before = watched()
code = main(["consolidate", *sys.argv[1:]])
print(code, peak[0] - before)
"""


def save_first(world: World, run: RunConfig, folder: str) -> dict[str, int]:
    """A checkpoint of first weights; the checksum of each tensor."""
    engine = build_engine(run, world)
    engine.save(folder, {})
    engine.close()
    return {name: zlib.crc32(tensor.numpy()) for name, tensor in engine.full_state()}


def test_consolidate_holds_one_tensor(tmp_path: Path) -> None:
    """A checkpoint of 70 MB of two ranks, largest tensor 4.2 MB: the pieces of one tensor and the whole are held."""
    text = replace(
        synthetic.MODEL.text, hidden_size=512, intermediate_size=2048, num_hidden_layers=4
    )
    run = synthetic.config(
        model=replace(synthetic.MODEL, text=text), strategy="ds_configs/zero3.json"
    )
    sums = run_ranks(save_first, 2, run, str(tmp_path / "run"))[0]
    command = [
        sys.executable,
        "-c",
        WATCH + CONSOLIDATE,
        str(tmp_path / "run"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120, env=WATCHED
    )
    assert done.returncode == 0, done.stderr
    code, peak = done.stdout.split()[-2:]
    whole = TensorFolder(tmp_path / "out")
    assert sum(4 * math.prod(whole.shape(name)) for name in sums) > 65e6
    assert code == "0" and int(peak) < 3 * 4.2e6, peak
    assert {name: zlib.crc32(whole.read(name).numpy()) for name in whole.names()} == sums


def test_released_configurations() -> None:
    """The published numbers of the four models lead to their presets (facts of the released config.json files)."""
    same = {
        "model_type": "molmo",
        "layer_norm_type": "rms",
        "max_position_embeddings": 4096,
        "weight_tying": False,
    }
    qwen = {"vocab_size": 152064, "embedding_size": 152064, "qkv_bias": True, "rope_theta": 1e6}
    wide = {
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 80,
    }
    wide |= {"intermediate_size": 59136, "layer_norm_eps": 1e-5}
    small = {
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
    }
    small |= {"intermediate_size": 37888, "layer_norm_eps": 1e-6}
    olmo = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "num_hidden_layers": 32,
    }
    olmo |= {
        "intermediate_size": 22016,
        "vocab_size": 100278,
        "embedding_size": 100352,
        "attention_layer_norm": True,
    }
    olmo |= {
        "norm_after": True,
        "rope_theta": 500000,
        "layer_norm_eps": 1e-6,
        "qkv_bias": False,
        "clip_qkv": None,
    }
    tower = {
        "image_model_type": "openai", "image_default_input_size": [336, 336], "image_patch_size": 14,
        "image_emb_dim": 1024, "image_num_heads": 16, "image_num_layers": 23, "image_mlp_dim": 4096,
        "image_num_pos": 577, "image_norm_eps": 1e-5, "image_mlp_activations": "quick_gelu", "resize_mode": "default",
    }  # fmt: skip
    moe = {
        "model_type": "molmo", "d_model": 2048, "n_heads": 16, "n_kv_heads": None, "n_layers": 16, "mlp_ratio": 1,
        "block_type": "moe", "moe_num_experts": 64, "moe_top_k": 8, "vocab_size": 50280, "embedding_size": 50304,
        "attention_layer_norm": True, "layer_norm_eps": 1e-5, "layer_norm_type": "rms", "rope_theta": 10000.0,
        "max_sequence_length": 4096, "vision_backbone": tower, "vit_layers": [-2, -9], "weight_tying": False,
        "image_pooling_2d": "attention-meanq", "image_padding_embed": "pad_and_partial_pad", "qkv_bias": False,
    }  # fmt: skip
    read = {
        "molmo_7b_d": same | qwen | small,
        "molmo_72b": same | qwen | wide,
        "molmo_7b_o": same | olmo,
        "molmoe_1b": moe,
    }
    for preset, values in read.items():
        assert molmo.from_released(values) == presets.get(preset), preset
    for preset in ("molmo2_4b", "molmo2_8b", "molmo2_o_7b", "tiny_molmo2", "tiny_molmo2_o"):
        config = presets.get(preset)
        config = replace(config, text=replace(config.text, tie_word_embeddings=False))
        values = molmo2.to_released(config, "bfloat16")
        assert molmo.from_released(values) == config
        del values["molmo_ds"]
        # crops stand in preprocessor_config.json, frames in the video's
        read_again = molmo.from_released(values)
        assert replace(read_again, images=config.images, video=config.video) == config
    for preset in read:  # what we write is read again, with and without our own field
        values = molmo.to_released(presets.get(preset), "bfloat16")
        assert molmo.from_released(values) == presets.get(preset)
        del values["molmo_ds"]
        assert molmo.from_released(values) == presets.get(preset), preset
