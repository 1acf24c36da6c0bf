"""Exported Molmo2 folders in transformers 4.57 (Ai2's code) and in the installed one, which has Molmo2: as we answer.

What differs is named here, and in docs/guides/convert.md.
"""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from environments import clean, folder, package_at, transformers_at
from exported import picture
from PIL import Image
from torch import Tensor

from molmo_ds import presets
from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import DataConfig, PromptConfig, RunConfig
from molmo_ds.data.order.packing import collate
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.tokens import Tokenizer
from molmo_ds.hub.export import to_hub
from molmo_ds.infer.generate import Options, generate
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.random_weights import random_state, weights_folder

pytestmark = pytest.mark.everything
HERE = Path(__file__).parent
WORDS = HERE.parents[1] / "tests/goldens/data/G_video/tokenizer/qwen3-tiny"
CODE = (
    "f3cb108"  # allenai/molmo2 of 2026-03-18, a clone of which lies in the folder of environments
)
TOKENS = 6
FPS = 2.0
FRAMES = np.stack([np.roll(picture(90, 70), 11 * i, 1) for i in range(7)])
SMALL, LARGE = picture(130, 240), picture(200, 150)  # no side of 112 pixels or less
CASES: dict[str, tuple[list[str], list[np.ndarray], Any]] = {
    "a text": (["What is it?"], [], None),
    "a picture": (["What is it?"], [LARGE], None),
    "two pictures": (["Compare these."], [LARGE, SMALL], None),
    "a video": (["What happens?"], [], (FRAMES, FPS)),
    "two turns": (["What is it?", "a boat.", "And now?"], [LARGE], None),
}
SETTINGS = {  # as examples/molmo2 has them
    "message_format": "chat",
    "system_prompt": "demo_or_style_v2",
    "prompt_templates": "uber_model_v2",
    "always_start_with_space": False,
}


@pytest.fixture(scope="module")
def code() -> Path:
    """The folder of Ai2's code."""
    clone = folder() / "molmo2"
    if not clone.is_dir():
        how = f"git clone https://github.com/allenai/molmo2 {clone}"
        pytest.skip(f"{clone} is missing: {how}; git -C {clone} checkout {CODE}")
    words = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    head = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert head.startswith(CODE), "another version than the docs speak of"
    return clone / "olmo/hf_model"


def model_of(kind: str) -> MolmoConfig:
    """A tiny Molmo2, as many words as the tokenizer has and a few more."""
    config = presets.get(kind)
    return replace(config, text=replace(config.text, vocab_size=1024, embedding_size=1024))


def png(frame: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG")
    return stream.getvalue()


def said(root: Path, out: str, *path: Path) -> dict[str, Any]:
    """What transformers of these folders said; the folder's code counts where there is one."""
    there = ":".join(map(str, (*path, package_at("torchvision", "0.29.1"))))
    words = [root / "export", root / "cases.pt", root / out, "remote" if path else "own"]
    done = subprocess.run(
        [sys.executable, str(HERE / "molmo2_calls.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env=clean(HF_MODULES_CACHE=str(root / "modules"), PYTHONPATH=there),
        stdin=subprocess.DEVNULL,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(root / out, weights_only=False)


def ours(model: Molmo, builder: SampleBuilder, case: tuple) -> tuple[Tensor, Tensor, Tensor, list]:
    """(ids, pixels, logits, answer) of a case."""
    turns, pictures, video = case
    seen = builder.see(pictures)
    if video is not None:
        names = [f"{i}.png" for i in range(len(video[0]))]
        frames = [png(frame) for frame in video[0]]
        seen = builder.see_video({"images": names, "pixels": frames, "fps": video[1]})
    sample = builder.prompt(seen, turns[0] if len(turns) == 1 else turns, style="demo")
    batch = collate([[sample]], len(sample.input_ids))
    with torch.no_grad():
        logits = model.logits(batch)
    made = generate(model, batch, builder.tokenizer.eos, Options(max_new_tokens=TOKENS))
    return sample.input_ids, sample.images, logits, made.ids(0)


@pytest.mark.parametrize("kind", ["tiny_molmo2", "tiny_molmo2_o"])
def test_molmo2(kind: str, code: Path, tmp_path: Path) -> None:
    config = model_of(kind)
    state = random_state(config, len(kind))
    to_hub(weights_folder(tmp_path / "ours", config, state, WORDS), tmp_path / "export", code=code)
    torch.save(CASES, tmp_path / "cases.pt")
    old = said(tmp_path, "old.pt", transformers_at("4.57.6"))
    new = said(tmp_path, "new.pt")
    assert old["transformers"] == "4.57.6" and old["class"].startswith("transformers_modules.")
    assert new["class"] == "transformers.models.molmo2.modeling_molmo2"

    exact = replace(config, images=replace(config.images, exact=True))
    model = Molmo(exact).eval()
    model.load_state_dict(state)
    data = DataConfig(tokenizer=str(WORDS), sequence_length=2048, prompts=PromptConfig(**SETTINGS))
    builder = SampleBuilder(RunConfig(model=exact, data=data))
    for name, case in CASES.items():
        assert old[name]["text"] == new[name]["text"]
        assert torch.equal(old[name]["inputs"]["input_ids"], new[name]["inputs"]["input_ids"])
        torch.testing.assert_close(old[name]["logits"], new[name]["logits"], atol=1e-4, rtol=0)
        assert old[name]["answer"] == new[name]["answer"]
        ids, pixels, logits, answer = ours(model, builder, case)
        inputs = old[name]["inputs"]
        if name == "two turns":
            assert in_turns(ids.tolist(), builder.tokenizer) == inputs["input_ids"][0].tolist()
            continue
        assert torch.equal(inputs["input_ids"][0], ids), name
        for found in (old[name]["inputs"], new[name]["inputs"]):
            seen = found.get("pixel_values", found.get("pixel_values_videos"))
            if seen is not None:
                torch.testing.assert_close(seen, pixels, atol=1e-6, rtol=0)
        torch.testing.assert_close(old[name]["logits"], logits, atol=1e-4, rtol=0)
        assert old[name]["answer"] == answer, name
    assert len({tuple(new[name]["answer"]) for name in CASES}) == len(CASES)  # all is seen


def in_turns(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """A conversation of training as the released template writes it: one end of an answer, a space before it begins."""
    (end,) = (i for i in range(1, len(ids)) if ids[i - 1] == ids[i] == tokenizer.eos)
    answer = tokenizer.encode("assistant")
    (begins,) = (i - 1 for i in range(end) if ids[i : i + len(answer)] == answer)
    return [*ids[:begins], *tokenizer.encode(" "), *ids[begins:end], *ids[end + 1 :]]
