"""A rank's slices are those of the whole tensors, whatever the folder, in bounded memory; or one sentence."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_models import (
    expert_parts,
    flat_parts,
    in_turn,
    model,
    run_config,
    tensor_parts,
    write_checkpoint,
)
from torch import Tensor, nn

from molmo_ds import presets
from molmo_ds.architecture import MolmoConfig, VideoConfig
from molmo_ds.config import LoraConfig, PromptConfig
from molmo_ds.engine.shares.tensor_shards import COLUMNS, ROWS
from molmo_ds.model import lora
from molmo_ds.model.families import molmo2, molmo_names
from molmo_ds.model.families.molmo import to_released
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.random_weights import random_state, weights_folder
from molmo_ds.weights import released_config, rename, slices
from molmo_ds.weights.source import HEAD, open_source

ROOT = Path(__file__).parents[2]
DENSE = model()
EXPERTS = model(
    model_type="olmoe", num_experts=4, num_experts_per_tok=2, intermediate_size=24, attention_bias=False, qk_norm=True,
    norm_topk_prob=False,
)  # fmt: skip


def cut_of(name: str, tensor: Tensor, size: int, place: int) -> slices.Cut:
    """As a rank of a replica holds it: columns, rows, experts and words in parts."""
    rows = ".mlp.experts." in name or COLUMNS.fullmatch(name) or name == HEAD
    dimension = 0 if rows else 1 if ROWS.fullmatch(name) else None
    if dimension is None:
        return tuple(slice(0, length) for length in tensor.shape)
    most = -(-tensor.shape[dimension] // size)
    part = slice(place * most, min((place + 1) * most, tensor.shape[dimension]))
    return (part,) if dimension == 0 else (slice(0, tensor.shape[0]), part)


def thin(state: dict[str, Tensor], cuts: dict[str, slices.Cut]) -> nn.Module:
    """A module on the meta device whose parameters have the shapes of one rank's."""
    top = nn.Module()
    for name, cut in cuts.items():
        owner = top
        *path, leaf = name.split(".")
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, nn.Module())
            owner = getattr(owner, step)
        owner.register_parameter(leaf, nn.Parameter(state[name][cut].to("meta")))
    return top


def released_folder(folder: Path, config: MolmoConfig, state: dict[str, Tensor], form: str) -> Path:
    """A released folder: safetensors in two files with an index, or one .bin as MolmoE's."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_released(config, "float32")))
    theirs = dict(rename.to_theirs(molmo_names.released(config), state.__getitem__))
    theirs = {name: tensor.clone() for name, tensor in theirs.items()}
    if form == "bin":
        torch.save(theirs, folder / "pytorch_model.bin")
        return folder
    halves = [dict(list(theirs.items())[half::2]) for half in range(2)]
    for number, half in enumerate(halves):
        save_file(half, folder / f"part{number}.safetensors")
    where = {
        name: f"part{number}.safetensors" for number, half in enumerate(halves) for name in half
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def checkpoint_of(
    parts: Callable, ranks: int
) -> Callable[[Path, MolmoConfig, dict[str, Tensor]], Path]:
    return lambda folder, config, state: write_checkpoint(
        folder, run_config(config), state, parts, ranks
    )


FOLDERS = {
    "weights": weights_folder,
    "shards": lambda folder, config, state: released_folder(folder, config, state, "shards"),
    "bin": lambda folder, config, state: released_folder(folder, config, state, "bin"),
    "zero, 3 ranks": checkpoint_of(flat_parts, 3),
    "pipeline": checkpoint_of(in_turn, 2),
    "tensor": checkpoint_of(tensor_parts, 2),
    "experts": checkpoint_of(expert_parts, 2),
    "one rank": checkpoint_of(flat_parts, 1),
}


CASES = [(kind, DENSE) for kind in FOLDERS if kind != "experts"]
CASES += [(kind, EXPERTS) for kind in ("weights", "shards", "bin", "experts")]


@pytest.mark.parametrize(
    ("kind", "architecture"), CASES, ids=[f"{k} {a.text.model_type}" for k, a in CASES]
)
def test_slices_of_every_folder(
    tmp_path: Path, kind: str, architecture: MolmoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a few rows, so that blocks begin and end inside pieces
    monkeypatch.setattr(slices, "BLOCK", 4000)
    state = random_state(architecture)
    source = open_source(FOLDERS[kind](tmp_path / "folder", architecture, state))
    assert source.config.model == architecture
    seen = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for place in range(2):
        stage = [name for name in state if not name.startswith(f"layers.{1 - place}.")]
        cuts = {name: cut_of(name, state[name], 2, place) for name in stage}
        module = thin(state, cuts)
        slices.fill(module, source, cuts, part=place, parts=2)
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, state[name][cuts[name]]), (kind, name)
            seen[name][cuts[name]] = parameter.detach()
    for name in ("head.lm_head.weight", "vision.layers.0.mlp.fc1.weight"):
        assert torch.equal(seen[name], state[name])
    with torch.device("meta"):
        whole = Molmo(architecture)
    by_columns = {"layers.1.self_attn.k_proj.weight", "head.lm_head.weight"}
    slices.fill(whole, source, dtype=torch.bfloat16, by_columns=by_columns)
    lying = {n for n, p in whole.named_parameters() if p.ndim == 2 and not p.is_contiguous()}
    assert lying == by_columns
    assert all(torch.equal(p, state[name].bfloat16()) for name, p in whole.named_parameters())


def test_adapters_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of the reader that merges whole tensors."""
    monkeypatch.setattr(slices, "BLOCK", 1000)
    config = replace(run_config(DENSE), lora=LoraConfig(components=("text",), rank=3, alpha=5.0))
    with torch.device("meta"):
        adapted = Molmo(DENSE)
        lora.adapt(adapted, config.lora)
    state = {name: torch.randn(p.shape) for name, p in adapted.named_parameters()}
    source = open_source(write_checkpoint(tmp_path / "run", config, state))
    names, whole = lora.merged(state, state.__getitem__, 5.0)
    with torch.device("meta"):
        module = Molmo(DENSE)
    slices.fill(module, source)
    changed = 0
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.data, whole(name), atol=1e-6, rtol=1e-6)
        changed += not torch.equal(parameter, state[name])
    assert len(names) == len(source.shapes) and changed == 7 * DENSE.text.num_hidden_layers


@pytest.mark.parametrize("kind", ["weights", "shards", "zero, 3 ranks"])
def test_a_tied_head_is_a_copy(tmp_path: Path, kind: str) -> None:
    tied = model(tie_word_embeddings=True)
    state = {name: tensor for name, tensor in random_state(tied).items() if name != HEAD}
    if kind == "shards":
        folder = released_folder(
            tmp_path / "folder", tied, state | {HEAD: state["embed.embedding"]}, kind
        )
        for part in folder.glob("*.safetensors"):
            save_file(
                {
                    n: t
                    for n, t in load_file(part).items()
                    if n[-13:] != "ff_out.weight" or "blocks" in n
                },
                part,
            )
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        index.pop("model.transformer.ff_out.weight")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        folder = FOLDERS[kind](tmp_path / "folder", tied, state)
    source = open_source(folder)
    assert not source.config.model.text.tie_word_embeddings
    with torch.device("meta"):
        module = Molmo(source.config.model)
    slices.fill(module, source)
    assert torch.equal(module.head.lm_head.weight, state["embed.embedding"])


def test_one_sentence_names_file_and_tensor(tmp_path: Path) -> None:
    """What a released folder can have wrong, each time the file or the folder, the tensor, and what to do."""
    state = random_state(DENSE)
    good = released_folder(tmp_path / "good", DENSE, state, "shards")
    key = "model.transformer.blocks.1.ff_proj.weight"
    where = json.loads((good / "model.safetensors.index.json").read_text())["weight_map"]
    file = where[key]

    def broken(name: str, change: Callable[[dict[str, Tensor]], object]) -> Path:
        folder = shutil.copytree(good, tmp_path / name)
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)
        return folder

    def not_a_number(tensors: dict[str, Tensor]) -> None:
        tensors[key][7, 3] = torch.nan

    def lying(name: str, change: Callable[[dict], object]) -> Path:
        folder = shutil.copytree(good, tmp_path / name)
        data = (folder / file).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        change(header[key])
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        return folder

    def cut(name: str, bytes_left: int) -> Path:
        folder = shutil.copytree(good, tmp_path / name)
        (folder / file).write_bytes((folder / file).read_bytes()[:bytes_left])
        return folder

    lost = shutil.copytree(good, tmp_path / "lost")
    (lost / file).unlink()
    faults = {
        f"{file} lacks tensor '{key}', which the index promises": broken(
            "missing", lambda t: t.pop(key)
        ),
        f"'{key}' has shape [96, 31] and the configuration asks for [96, 32]": broken(
            "shape", lambda t: t.update({key: torch.ones(96, 31)})
        ),
        f"{file}: tensor '{key}' is of type int32": broken(
            "kind", lambda t: t.update({key: t[key].int()})
        ),
        f"{file}: tensor '{key}' holds a number that is not finite": broken("nan", not_a_number),
        f"{file} is cut short: tensor": cut("short", -100),
        f"{file} is cut short: its header": cut("header", 60),
        f"{file}, which is not there": lost,
        "lies over another one": lying(
            "over", lambda e: e.update(data_offsets=[n - 4 for n in e["data_offsets"]])
        ),
        f"{file} is damaged: tensor '{key}' [96, 33] of type F32": lying(
            "wide", lambda e: e.update(shape=[96, 33])
        ),
        f"header says of tensor '{key}' what cannot be": lying(
            "negative", lambda e: e.update(shape=[-96, -32])
        ),
    }
    for sentence, folder in faults.items():
        with pytest.raises(ValueError) as said:
            source = open_source(folder)
            with torch.device("meta"):
                module = Molmo(DENSE)
            slices.fill(module, source)
        text = (
            str(said.value)
            .replace("layers.1.mlp.up_proj.weight", key)
            .replace("layers.1.mlp.gate_proj.weight", key)
        )
        assert sentence in text and text.endswith(".") and "\n" not in text, text


def test_another_architecture_and_damaged_pieces(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", run_config(DENSE), random_state(DENSE))
    source = open_source(run)
    with torch.device("meta"):
        wider = Molmo(model(intermediate_size=64))
        deeper = Molmo(model(num_hidden_layers=3))
    with pytest.raises(
        ValueError, match=r"gate_proj.weight' has shape \[48, \d+\] and .* asks for \[64, \d+\]"
    ):
        slices.fill(wider, source)
    with pytest.raises(ValueError, match="has no tensor 'layers.2"):
        slices.fill(deeper, source)
    with pytest.raises(ValueError, match="neither checkpoints nor weights"):
        open_source(tmp_path)


HELD = """
import sys, threading, time, torch
from torch import nn
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights import slices
from molmo_ds.weights.source import open_source
from test_slices import cut_of, thin

torch.set_num_threads(1)
slices.BLOCK = 1 << 20
def private():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
def watch():
    while True:
        peak[0] = max(peak[0], private())
        time.sleep(0.0005)
def measure(folder, dtype):
    source = open_source(folder)
    state = {name: torch.empty(shape, device="meta") for name, shape in source.shapes.items()}
    cuts = {name: cut_of(name, tensor, 8, 3) for name, tensor in state.items() if name.startswith("layers.")}
    module = thin(state, cuts)
    before = peak[0] = private()
    slices.fill(module, source, cuts, dtype)
    held = sum(p.nbytes for p in module.parameters())
    assert all(bool((p == 0.5).all()) for p in module.parameters())
    return held, peak[0] - before - held, sum(4 * t.numel() for t in state.values())

peak = [0]
threading.Thread(target=watch, daemon=True).start()
measure(sys.argv[1], torch.bfloat16)
for folder in sys.argv[1:]:
    print("seen", *measure(folder, torch.bfloat16))
"""


def test_memory(tmp_path: Path) -> None:
    """Rank 3 of 8: in addition to what it holds a few blocks, here of 1 MiB, of matrices of 8 to 17 MB."""
    heads = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
    big = model(intermediate_size=8192, **heads)
    experts = replace(EXPERTS.text, num_experts=32, intermediate_size=512, **heads)
    many = replace(EXPERTS, text=experts)
    folders = []
    for name, kind, architecture in (
        ("a", "shards", big),
        ("b", "tensor", big),
        ("c", "bin", many),
    ):
        with torch.device("meta"):
            shapes = {n: p.shape for n, p in Molmo(architecture).named_parameters()}
        state = {n: torch.full(shape, 0.5) for n, shape in shapes.items()}
        folders.append(str(FOLDERS[kind](tmp_path / name, architecture, state)))
    command = [sys.executable, "-c", HELD, *folders]
    watched = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    watched["PYTHONPATH"] = f"{ROOT}:{Path(__file__).parent}"
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=180, env=watched
    )
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("seen ")]
    for line, folder in zip(lines, folders, strict=True):
        held, above, whole = map(int, line.split()[1:])
        assert whole > 60e6 and held < whole / 8, (folder, line)
        assert above < 6 << 20, (folder, line)  # a whole matrix would be 8 << 20 at least


def test_a_released_folder_says_how_to_crop_and_to_ask(tmp_path: Path) -> None:
    """preprocessor_config.json of a folder without our own field; processor_config.json of an export."""
    values = to_released(presets.get("molmo_7b_d"), "float32")
    values.pop("molmo_ds")
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert (
        released_config.read(tmp_path) == presets.get("molmo_7b_d")
        and released_config.prompts(tmp_path, "molmo") == PromptConfig()
    )
    (tmp_path / "preprocessor_config.json").write_text(
        '{"max_crops": 20, "overlap_margins": [3, 5]}'
    )
    images = released_config.read(tmp_path).images
    assert (images.max_crops, images.overlap_margins) == (20, (3, 5))
    (tmp_path / "processor_config.json").write_text(
        '{"message_format": "none", "processor_class": "MolmoProcessor"}'
    )
    for family, usual in released_config.FAMILY.items():
        found = released_config.prompts(tmp_path, family)
        assert found == replace(usual, message_format="none"), family


def test_a_released_molmo2_says_how_many_frames_it_sees(tmp_path: Path) -> None:
    """A file of each part, or, as transformers 5 saves them, both parts in processor_config.json."""
    preset = presets.get("molmo2_8b")
    values = molmo2.to_released(preset, "float32")
    values.pop("molmo_ds")
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert released_config.read(tmp_path) == preset
    pictures = {"max_crops": 20, "overlap_margins": [3, 5], "pooling_size": [2, 2]}
    frames = {"num_frames": 384, "max_fps": 4, "pooling_size": [5, 5]}
    frames["frame_sample_mode"] = "uniform"
    # readers of these files cut one of several pictures as a single one
    images = replace(
        preset.images,
        max_crops=20,
        several_max_crops=20,
        overlap_margins=(3, 5),
        use_col_tokens=False,
    )
    video = VideoConfig(max_frames=384, max_fps=4.0, pooling_size=5, frame_sample_mode="uniform")
    said = {"image_use_col_tokens": False, "use_frame_special_tokens": True}
    together = said | {"image_processor": pictures, "video_processor": frames}
    (tmp_path / "processor_config.json").write_text(json.dumps(together))
    assert released_config.read(tmp_path) == replace(preset, images=images, video=video)
    (tmp_path / "processor_config.json").write_text(json.dumps(said))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pictures))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(frames))
    assert released_config.read(tmp_path) == replace(preset, images=images, video=video)
    (tmp_path / "video_preprocessor_config.json").write_text('{"pooling_size": [3, 2]}')
    with pytest.raises(ValueError, match="pooling_size"):
        released_config.read(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"use_frame_special_tokens": false}')
    with pytest.raises(ValueError, match="use_frame_special_tokens is 'False'"):
        released_config.read(tmp_path)
