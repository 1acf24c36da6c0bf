"""Molmo2 in the released format: read, written back bit for bit, and read by transformers' own Molmo2."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import MISSING, OURS, folder, need, read_json, read_tensors
from molmo2_models import KIND, PART, kinds, read_batch, read_config, to_batch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, Molmo2ForConditionalGeneration

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import shifted
from molmo_ds.data.sample.pictures.images import ImageProcessor
from molmo_ds.hub import load
from molmo_ds.hub.export import to_hub
from molmo_ds.infer.generate import Options, generate
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights.tensor_files import TensorFolder

HUB = "G_video/G_hub"
TOKENIZER = "G_video/tokenizer/qwen3-tiny"


def released() -> list[str]:
    """The kinds whose weights lie there in the released format."""
    there = [
        kind for kind in kinds() if (folder() / f"{PART}/{kind}/hf/model.safetensors").exists()
    ]
    return there or [f"{MISSING}{PART}/*/hf/model.safetensors"]


def sizes(kind: str) -> tuple[str, ...]:
    """What config.json does not say: how pictures are cut, and how many frames of a video are seen."""
    images = read_config(kind).images
    video = read_config(kind).video
    return (
        f"video.max_frames={video.max_frames}",
        f"images.max_crops={images.max_crops}",
        f"images.several_max_crops={'null' if images.several_max_crops is None else images.several_max_crops}",
        f"images.overlap_margins={list(images.overlap_margins)}",
    )


def read_model(path: Path) -> Molmo:
    """Our network with the weights of a folder of ours."""
    weights = TensorFolder(path)
    model = Molmo(load.read_config(path)).eval()
    model.load_state_dict({name: weights.read(name).float() for name in weights.names()})
    return model


@pytest.mark.parametrize("kind", released())
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    source = need(f"{PART}/{kind}/hf")
    config = load.from_hub(source, tmp_path / "ours", sizes(kind))
    assert config == read_config(kind)
    assert to_hub(tmp_path / "ours", tmp_path / "theirs").refusal is None
    back = TensorFolder(tmp_path / "theirs")
    given = load_file(source / "model.safetensors")
    assert set(back.names()) == set(given)
    for key, tensor in given.items():
        assert torch.equal(back.read(key), tensor), key
    made = json.loads((tmp_path / "theirs" / "config.json").read_text())
    want = json.loads((source / "config.json").read_text())
    # the tower is described without the blocks that nothing reads, as it is stored
    tower = want["vit_config"]
    layers = want["adapter_config"]["vit_layers"]
    built = max(layer % tower["num_hidden_layers"] for layer in layers) + 1
    want["adapter_config"]["vit_layers"] = [
        layer % tower["num_hidden_layers"] - built for layer in layers
    ]
    tower["num_hidden_layers"] = built
    for name in ("auto_map", "transformers_version"):  # of their code
        want.pop(name, None)
    made.pop("molmo_ds")
    assert made == want


@pytest.mark.parametrize("kind", released())
def test_transformers_reads_what_we_write(kind: str, tmp_path: Path) -> None:
    load.from_hub(need(f"{PART}/{kind}/hf"), tmp_path / "ours", sizes(kind))
    to_hub(tmp_path / "ours", tmp_path / "theirs", "fp32")
    theirs = Molmo2ForConditionalGeneration.from_pretrained(
        tmp_path / "theirs", dtype=torch.float32
    ).eval()
    ours = read_model(tmp_path / "ours")
    shown = [path.stem.removeprefix("batch_") for path in need(f"{PART}/{kind}").glob("batch_*")]
    shown.remove("packed") if "packed" in shown else None
    for name in shown:
        batch, *_ = read_batch(kind, name)
        valid = batch.document_ids != 0
        words = ours.config.text.vocab_size
        video = bool((batch.input_ids == words + 7).any())
        pictures = {
            "pixel_values_videos" if video else "pixel_values": batch.images,
            "video_token_pooling" if video else "image_token_pooling": batch.windows,
        }
        # read for the number of their windows only
        grid = [1, 1, len(batch.windows)] if video else [0, 0, 1, len(batch.windows)]
        pictures["video_grids" if video else "image_grids"] = torch.tensor([grid])
        with torch.no_grad():
            want = theirs(
                input_ids=batch.input_ids,
                attention_mask=valid.long(),
                mm_token_type_ids=(batch.image_ids > 0).long(),
                **pictures,
            ).logits
            got = ours.logits(batch)
        torch.testing.assert_close(got[valid], want[valid], atol=1e-4, rtol=0)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our export of the kind that G_hub was made with, with a tokenizer."""
    root = tmp_path_factory.mktemp("molmo2")
    load.from_hub(need(f"{PART}/{KIND}/hf"), root / "ours", sizes(KIND))
    to_hub(root / "ours", root / "theirs", "fp32", need(TOKENIZER))
    return root / "theirs"


def conversations() -> list[int]:
    """Numbers of the cases of hub.json; our own copy holds none."""
    path = folder() / HUB / "hub.json"
    if not path.is_file():
        return []
    return list(range(len(json.loads(path.read_text())["chat"])))


@pytest.mark.parametrize("number", conversations())
def test_chat_template(exported: Path, number: int) -> None:
    case = read_json(f"{HUB}/hub.json")["chat"][number]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    prompt = {"tokenize": False, "add_generation_prompt": case["add_generation_prompt"]}
    assert tokenizer.apply_chat_template(case["messages"], **prompt) == case["text"]


def through_ours(config: MolmoConfig, tokenizer: Any, text: str, pictures: list) -> dict:
    """(tokens, windows, pixels) of a prompt whose pictures our own processor cuts."""
    words = config.text.vocab_size
    processor = ImageProcessor(replace(config, images=replace(config.images, exact=True)))
    made = [processor(picture.convert("RGB")) for picture in pictures]
    ids = [tokenizer.eos_token_id]
    windows = []
    patches = 0
    waiting = iter(made)
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if token != tokenizer.convert_tokens_to_ids("<|image|>"):
            ids.append(token)
            continue
        crops = next(waiting)
        ids += (crops.layout.tokens + words).tolist()
        windows.append(shifted(torch.from_numpy(crops.layout.windows), patches))
        patches += crops.masks.numel()
    pixels = torch.cat([crops.images for crops in made])
    return {"input_ids": torch.tensor([ids]), "windows": torch.cat(windows), "pixels": pixels}


@pytest.mark.skipif(not conversations(), reason=f"{folder()} has no {HUB}: run with MOLMO_GOLDENS")
def test_pictures_of_the_released_processor(exported: Path) -> None:
    """Our tokens, pixels and logits are those of the released processor and model."""
    golden = read_tensors(f"{HUB}/processor.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(exported)
    pictures = [Image.open(path) for path in sorted(need(HUB).glob("picture_*.png"))]
    ours = read_model(exported.parent / "ours")
    margin = sum(ours.config.images.overlap_margins) * ours.config.vision.patch_size
    checked = 0
    for case in read_json(f"{HUB}/hub.json")["processor"]:
        name = case["name"]
        if f"{name}.logits_last" not in golden or "pixel_values" not in case:
            continue
        count = golden[f"{name}.image_num_crops"].shape[0]
        if min(min(picture.size) for picture in pictures) <= margin and count > 1:
            continue  # the released processor tiles otherwise than training where a side is so short
        want = case["pixel_values"]["sum"]
        for chosen in itertools.permutations(pictures, count):
            made = through_ours(ours.config, tokenizer, case["text"][0], list(chosen))
            if float(made["pixels"].double().sum()) == pytest.approx(want, abs=0.5):
                break
        else:
            pytest.fail(f"no pictures make {name}")
        assert torch.equal(made["input_ids"], golden[f"{name}.input_ids"])
        pixels = made["pixels"]
        close = pixels.flatten()[golden[f"{name}.pixel_values.flat_idx"]]
        byte = 2 / 255  # one value in thousands lies between two bytes and may be rounded otherwise
        values = golden[f"{name}.pixel_values.value"]
        torch.testing.assert_close(close, values, atol=1.01 * byte, rtol=0)
        tensors = {
            "in.input_ids": made["input_ids"],
            "in.position_ids": torch.arange(made["input_ids"].shape[1])[None],
            "in.token_pooling": made["windows"][None],
        }
        batch = to_batch(ours.config, tensors, ((pixels + 1) / 2 * 255)[None])
        with torch.no_grad():
            logits = ours.logits(batch)
        torch.testing.assert_close(logits[0, -1], golden[f"{name}.logits_last"], atol=0.01, rtol=0)
        assert torch.equal(logits.argmax(-1), golden[f"{name}.logits_argmax"])
        greedy = golden[f"{name}.greedy"]
        options = Options(max_new_tokens=greedy.shape[1])
        out = generate(ours, batch, tokenizer.eos_token_id, options)
        assert torch.equal(out.token_ids[:, 0, : greedy.shape[1]], greedy)
        checked += 1
    assert checked


def test_our_own_copy_is_there() -> None:
    assert (OURS / PART / KIND / "hf" / "model.safetensors").is_file()
