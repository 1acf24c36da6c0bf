"""Exported folders in an environment without this package: the same logits and answers as here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_models import model_of, tiny
from PIL import Image
from torch.nn import functional as F

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, windows_of
from molmo_ds.config import DataConfig, RunConfig
from molmo_ds.data.order.packing import collate
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.hub import export
from molmo_ds.hub.bundle import bundle
from molmo_ds.infer.generate import Options, generate
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.random_weights import random_state, weights_folder
from molmo_ds.weights.tensor_files import TensorFolder

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
KINDS = {
    "hub_qwen2": ("qwen2", "clip"),
    "hub_olmo2": ("olmo2", "siglip"),
    "hub_olmoe": ("olmoe", "dinov2"),
}
QUESTION = "Describe this picture."
TYPED = ("What does <|image|> mean?", "<im_patch>", "one<|endoftext|>two", "a plain question")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Three exported models, and what a bare environment saw of them."""
    root = tmp_path_factory.mktemp("remote")
    for name, kind in KINDS.items():
        config = tiny(*kind)
        folder = weights_folder(
            root / f"ours_{name}", config, random_state(config, len(name)), tokenizer
        )
        export.to_hub(folder, root / name)
    (root / "typed.txt").write_text("\n".join(TYPED))
    write_pictures(root / "pictures")
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    ours = {"FOLDER": "hub_qwen2", "Describe this image.": QUESTION, "tokens=200": "tokens=8"}
    for theirs, value in ours.items():
        assert theirs in code
        code = code.replace(theirs, value)
    (root / "readme.py").write_text(code)
    Image.fromarray(picture(160, 70)).save(root / "picture.jpg", "PNG")  # without loss
    keep = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")
    env = {k: v for k, v in os.environ.items() if k in keep}
    env |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(root / "hf"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-I", str(HERE / "remote_run.py"), str(root)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env, timeout=240)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return root


@pytest.fixture(scope="module")
def seen(root: Path) -> dict:
    return torch.load(root / "seen.pt", weights_only=False)


def write_pictures(folder: Path) -> None:
    """Files that the fast decoders of training and Pillow alone could read otherwise."""
    folder.mkdir()
    pixels = picture(120, 90)
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.arange(90 * 120, dtype=np.uint16).reshape(90, 120) * 6).save(
        folder / "grey16.png"
    )
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels).quantize(8).save(folder / "palette.png", transparency=1)
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "floats.tiff")


def picture(width: int, height: int) -> np.ndarray:
    """As in remote_run.py."""
    source = torch.Generator().manual_seed(width)
    return torch.randint(0, 256, (height, width, 3), generator=source, dtype=torch.uint8).numpy()


def prompt(config: MolmoConfig, tokenizer: Path, text: str | None, *pictures: np.ndarray) -> Batch:
    """The prompt as this package makes it for training and generation."""
    builder = SampleBuilder(
        RunConfig(model=config, data=DataConfig(tokenizer=str(tokenizer), sequence_length=512))
    )
    sample = builder.prompt(list(pictures), text)
    return collate([[sample]], len(sample.input_ids))


def ours(name: str) -> tuple[MolmoConfig, Molmo]:
    config = tiny(*KINDS[name])
    return config, model_of(config, random_state(config, len(name)))


def test_nothing_else_was_imported(seen: dict) -> None:
    here = {"torch", "transformers", "PIL", "tokenizers", "safetensors"}
    gone = {
        "molmo_ds",
        "tensorflow",
        "torchvision",
        "deepspeed",
        "omegaconf",
        "simplejpeg",
        "einops",
        "accelerate",
    }
    assert here <= set(seen["modules"]) and not gone & set(seen["modules"])
    assert not seen["torchvision"]


@pytest.mark.parametrize("name", KINDS)
def test_same_logits_and_answers(name: str, seen: dict, tokenizer: Path) -> None:
    got, (config, model) = seen[name], ours(name)
    batch = prompt(config, tokenizer, QUESTION, picture(160, 70))
    with torch.no_grad():
        want = model.logits(batch)
        text = model.logits(prompt(config, tokenizer, QUESTION))
    assert want.std() > 0.1
    torch.testing.assert_close(got["logits"], want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["text_logits"], text, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["logits_again"], want, atol=1e-5, rtol=1e-5)
    assert got["called"] == {"Block": 2, "VisionBlock": 3, "VisionBackbone": 1, "WordEmbedding": 1}
    eos = 299
    greedy = generate(model, batch, eos, Options(max_new_tokens=8)).ids(0)
    for way in ("greedy", "from_batch_True", "from_batch_False"):
        assert [i for i in got[way].tolist() if i != eos] == greedy
    beams = generate(model, batch, eos, Options(max_new_tokens=5, beams=3)).ids(0)
    assert got["beams"].tolist() == beams or eos in got["beams"]


def test_the_code_in_the_readme_says_what_the_model_says(seen: dict) -> None:
    assert seen["readme"] and seen["readme"] == seen["hub_qwen2"]["answer"].strip()


@pytest.mark.parametrize("name", KINDS)
def test_batches_equal_singles(name: str, seen: dict) -> None:
    got = seen[name]
    for i, row in enumerate(got["singles"]):
        assert got["batch"][i, : len(row)].tolist() == row.tolist()
    assert got["right_padded"][0].tolist() == got["from_batch_True"][:6].tolist()
    assert got["right_padded"][1, : len(got["singles"][2])].tolist() == got["singles"][2].tolist()


@pytest.mark.parametrize("name", KINDS)
def test_same_inputs_as_in_training(name: str, seen: dict, tokenizer: Path) -> None:
    config, got = tiny(*KINDS[name]), seen[name]["process"]
    batch = prompt(config, tokenizer, QUESTION, picture(160, 70))
    assert torch.equal(got["input_ids"], batch.input_ids[0])
    assert torch.equal(got["images"], batch.images) and torch.equal(
        got["image_masks"], batch.image_masks
    )
    # the same windows go to the same tokens; a batch has them in the order of tokens, without those that go nowhere
    grid = config.vision.image_size // config.vision.patch_size
    windows = windows_of(len(batch.images), grid, config.connector.pooling_size)
    places = got["image_input_idx"].flatten().tolist()
    theirs = {place: window for place, window in zip(places, windows.tolist()) if place >= 0}
    ours = dict(zip(batch.image_positions.tolist(), batch.windows.tolist(), strict=True))
    assert ours == theirs and len(ours) > 9


@pytest.mark.parametrize("name", KINDS)
def test_words_and_pixels_of_training(name: str, seen: dict, root: Path, tokenizer: Path) -> None:
    config, got = tiny(*KINDS[name]), seen[name]
    for text in TYPED:
        assert got["typed"][text] == prompt(config, tokenizer, text).input_ids[0].tolist()
    data = DataConfig(tokenizer=str(tokenizer), sequence_length=512)
    builder = SampleBuilder(RunConfig(model=config, data=data))
    assert (
        set(got["files"]) == {path.name for path in (root / "pictures").iterdir()} and got["files"]
    )
    for file, pixels in got["files"].items():
        want = builder.prompt([(root / "pictures" / file).read_bytes()], "Hi").images
        assert torch.equal(pixels, want) and torch.equal(got["opened"][file], want), file
    assert got["two_steps"]


@pytest.mark.parametrize("name", KINDS)
def test_generation_ends_at_the_last_position(name: str, seen: dict) -> None:
    got = seen[name]
    for way, (ids, lengths, said) in got["to_the_end"].items():
        # the shortest prompt has the most room
        assert ids.shape[1] == max(lengths) + 3 - min(lengths), way
        assert len(said) == 1 and "3 of 3 answers" in said[0], way
    assert "make it shorter" in got["too_long"]


@pytest.mark.parametrize("name", KINDS)
def test_what_servers_read(name: str, seen: dict, root: Path) -> None:
    config, got = tiny(*KINDS[name]), seen[name]
    side = config.vision.image_size // 14
    want = {
        "max_crops": 4,
        "overlap_margins": [2, 2],
        "base_image_input_size": [config.vision.image_size] * 2,
    }
    want |= {
        "image_patch_size": 14,
        "image_token_length_h": (side + 1) // 2,
        "image_token_length_w": (side + 1) // 2,
    }
    assert got["attributes"] == want | {"image_padding_mask": True}
    first = config.text.vocab_size
    words = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")
    assert got["vocab"] == {word: first + i for i, word in enumerate(words)}
    assert got["chat"] == "<|endoftext|> User: Hi Assistant:"
    assert got["chat_inputs"]
    talk = "<|endoftext|> User: Hi Assistant: Yes.<|endoftext|> User: And? Assistant:"
    assert got["chat_turns"] == talk
    assert got["max_crops"][0] > 5 and got["array"][0] == 2 and got["tokens"][0] == 299
    values = json.loads((root / name / "config.json").read_text())
    fields = {
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "embedding_size", "max_position_embeddings", "rope_theta",
        "layer_norm_eps", "layer_norm_type", "qkv_bias", "attention_layer_norm", "norm_after", "weight_tying",
    }  # fmt: skip
    assert fields <= set(values) and values["weight_tying"] is False
    assert values["intermediate_size"] == 2 * config.text.intermediate_size
    readers = json.loads((root / name / "preprocessor_config.json").read_text())
    assert set(readers["auto_map"]) == {"AutoProcessor", "AutoImageProcessor"}


@pytest.mark.parametrize("name", KINDS)
def test_saved_again(name: str, seen: dict, root: Path) -> None:
    """save_pretrained writes the released keys, and training through transformers reaches every weight."""
    before, after = TensorFolder(root / name), TensorFolder(root / f"{name}_again")
    assert set(before.names()) == set(after.names())
    assert all(torch.equal(before.read(key), after.read(key)) for key in before.names())
    logits, ids = seen[name]["logits"], seen[name]["process"]["input_ids"]
    want = F.cross_entropy(logits[0, -6:-1], ids[-5:])
    torch.testing.assert_close(seen[name]["loss"], want, atol=1e-5, rtol=1e-5)
    assert seen[name]["gradients"]


def test_bundle_is_the_package() -> None:
    """The exported network is the package's own text; of the ops only plain torch goes along."""
    files = bundle()
    source = (HERE.parent.parent / "molmo_ds" / "model" / "vision.py").read_text()
    lines = [line for line in source.splitlines() if line.strip() and "import" not in line]
    assert set(lines) <= set(files["ds_model_vision.py"].splitlines())
    ops = {name: text for name, text in files.items() if name.startswith("ds_ops_")}
    assert len(ops) == 11
    for name, text in ops.items():
        path = f"molmo_ds/ops/{name.removeprefix('ds_ops_').removesuffix('.py')}/reference.py"
        assert (
            text.splitlines()[0]
            == f"# Made from {path} by molmo_ds/hub/bundle.py: change it there."
        )
        body = [
            line
            for line in (HERE.parent.parent / path).read_text().splitlines()
            if "import" not in line
        ]
        assert body == [line for line in text.splitlines()[1:] if "import" not in line], name
    whole = "\n".join(files.values())
    for word in (
        "triton_kernels",
        "custom_op",
        "from molmo_ds",
        "import molmo_ds",
        "deepspeed",
        "import accelerate",
    ):
        assert word not in whole.replace("molmo_ds/", ""), word
