"""What transformers makes of an exported Molmo2 folder; started by test_molmo2.py.

    python molmo2_calls.py FOLDER CASES.pt SAID.pt own|remote

CASES.pt holds {name: [[turn, ...], pictures, video]}: arrays uint8 [height, width, 3], and [frames, height, width, 3]
with its frames per second. SAID.pt receives for each case the text of the template, the inputs, the logits of the
prompt, and what the greedy answer adds. `remote` runs the code of the folder.
"""

import sys
import types
from typing import Any

# PyPI's torchvision is built for CUDA: this part of it declares operators of its compiled half, which a torch for CPUs
# does not load; the transforms, all that Molmo2 wants, are torch's own operators
sys.modules["torchvision._meta_registrations"] = types.ModuleType("nothing")

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer  # noqa: E402

TOKENS = 6


def talk_of(turns: list[str], pictures: list[Any], video: Any) -> list[dict[str, Any]]:
    """A conversation whose first turn has the pictures or the video."""
    seen = [{"type": "image", "image": Image.fromarray(picture)} for picture in pictures]
    seen += [] if video is None else [{"type": "video"}]
    talk = []
    for number, turn in enumerate(turns):
        text = [{"type": "text", "text": turn}]
        role = "assistant" if number % 2 else "user"
        talk.append({"role": role, "content": [*seen, *text] if number == 0 else text})
    return talk


def main(folder: str, cases: str, out: str, code: str) -> None:
    """Ask each case."""
    torch.set_num_threads(1)
    remote = {"trust_remote_code": code == "remote"}
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **remote)
    processor = AutoProcessor.from_pretrained(folder, **remote)
    words = AutoTokenizer.from_pretrained(folder, **remote)
    found: dict[str, Any] = {
        "transformers": transformers.__version__,
        "class": type(model).__module__,
    }
    for name, (turns, pictures, video) in torch.load(cases, weights_only=False).items():
        talk = talk_of(turns, pictures, video)
        text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert text == words.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        given: dict[str, Any] = {"text": [text]}
        if pictures:
            given["images"] = [Image.fromarray(picture) for picture in pictures]
        if video is not None:
            frames, fps = video
            given["videos"] = [frames]
            known = {"fps": fps, "total_num_frames": len(frames), "duration": len(frames) / fps}
            given["videos_kwargs"] = {"video_metadata": [known]}
        inputs = processor(**given, return_tensors="pt")
        with torch.no_grad():
            logits = model.eval()(**inputs).logits
            ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answer = ids[0, inputs["input_ids"].shape[1] :].tolist()
        found[name] = {"text": text, "inputs": dict(inputs), "logits": logits, "answer": answer}
    torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
