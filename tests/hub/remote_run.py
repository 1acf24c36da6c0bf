"""Runs exported folders where only torch, transformers and Pillow are installed; started by test_remote.py.

Called with the exported folders' parent; writes what it saw to `seen.pt` there.
"""

import contextlib
import importlib.metadata
import io
import re
import sys
import warnings
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path


def installed_by(*roots: str) -> set[str]:
    """Top-level modules that come with these distributions and all they require."""
    names, waiting = set(), list(roots)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in names:
            try:
                requires = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            names.add(name)
            waiting += [re.match(r"[\w.-]+", r).group() for r in requires if "extra ==" not in r]
    modules = importlib.metadata.packages_distributions()
    return {
        m
        for m, dists in modules.items()
        if {re.sub(r"[-_.]+", "-", d).lower() for d in dists} & names
    }


class OnlyThese(PathFinder):
    """Finds no other installed package, as if none were there."""

    there = installed_by("torch", "transformers", "pillow") - {"triton"}
    hidden = set(importlib.metadata.packages_distributions()) - there | {
        "molmo_ds",
        "tools",
        "tests",
    }

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> object:
        return (
            None if name.split(".")[0] in cls.hidden else PathFinder.find_spec(name, path, target)
        )


sys.meta_path[:] = [BuiltinImporter, FrozenImporter, OnlyThese]

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForCausalLM, AutoProcessor, GenerationConfig  # noqa: E402
from transformers.utils import is_torchvision_available  # noqa: E402


def picture(width: int, height: int) -> Image.Image:
    """The picture that the parent process uses too."""
    values = torch.randint(
        0,
        256,
        (height, width, 3),
        generator=torch.Generator().manual_seed(width),
        dtype=torch.uint8,
    )
    return Image.fromarray(values.numpy())


def run(folder: Path) -> dict:
    """Everything the README and the evaluation kits do with one folder."""
    seen: dict = {}
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    wide, small = picture(160, 70), picture(40, 50)
    question = "Describe this picture."

    inputs = processor(text=question, images=wide, return_tensors="pt")  # the quick start
    with torch.no_grad():
        seen["logits"] = model(**inputs).logits
        seen["text_logits"] = model(**processor(text=question, return_tensors="pt")).logits
    called = []  # device maps move tensors in hooks, so every layer must be called
    kinds = ("Block", "VisionBlock", "VisionBackbone", "WordEmbedding")
    layers = [m for m in model.modules() if type(m).__name__ in kinds]
    hooks = [
        m.register_forward_pre_hook(lambda m, _: called.append(type(m).__name__)) for m in layers
    ]
    with torch.no_grad():
        model(**inputs)
    seen["called"] = {kind: called.count(kind) for kind in kinds}
    for hook in hooks:
        hook.remove()
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    seen["greedy"] = output[0, inputs["input_ids"].shape[1] :]
    seen["answer"] = processor.decode(seen["greedy"])
    seen["beams"] = model.generate(**inputs, max_new_tokens=5, num_beams=3, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]

    both = processor(
        text=[question, "What is it?", "And this?"],
        images=[[wide, small], None, small],
        return_tensors="pt",
    )
    out = model.generate(**both, max_new_tokens=6, do_sample=False)[:, both["input_ids"].shape[1] :]
    seen["batch"] = out
    seen["singles"] = []
    for text, images in ((question, [wide, small]), ("What is it?", None), ("And this?", small)):
        one = processor(text=text, images=images, return_tensors="pt")
        seen["singles"].append(
            model.generate(**one, max_new_tokens=6, do_sample=False)[0, one["input_ids"].shape[1] :]
        )

    row = processor.process(images=[wide], text=question)  # the model cards, VLMEvalKit, vLLM
    seen["process"] = row
    batch = {key: value.unsqueeze(0) for key, value in row.items()}
    options = GenerationConfig(max_new_tokens=8, stop_strings="<|endoftext|>", do_sample=False)
    size = row["input_ids"].shape[0]
    for cached in (True, False):
        out = model.generate_from_batch(
            batch, options, tokenizer=processor.tokenizer, use_cache=cached
        )
        seen[f"from_batch_{cached}"] = out[0, size:]
    short = processor.process(images=[small], text="And this?")
    padded = {
        k: torch.nn.functional.pad(v, (0, 0) * (v.ndim - 1) + (0, len(row[k]) - len(v)), value=-1)
        for k, v in short.items()
    }
    two = {k: torch.stack((row[k], padded[k])) for k in row}
    seen["right_padded"] = model.generate_from_batch(
        two, GenerationConfig(max_new_tokens=6, do_sample=False)
    )[:, size:]
    seen["max_crops"] = processor.process(
        text="", images=picture(500, 90), images_kwargs={"max_crops": 12}
    )["images"].shape
    seen["tokens"] = processor.process(
        tokens=processor.get_tokens_input("x", message_format="none")
    )["input_ids"]
    seen["array"] = processor.process(
        text=question, images=torch.tensor(0).new_zeros(50, 40, 3).numpy()
    )["images"].shape

    attributes = (
        "max_crops",
        "overlap_margins",
        "base_image_input_size",
        "image_patch_size",
        "image_token_length_h",
    )
    attributes += ("image_token_length_w", "image_padding_mask")
    seen["attributes"] = {name: getattr(processor.image_processor, name) for name in attributes}
    seen["vocab"] = {
        w: processor.tokenizer.vocab[w]
        for w in ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")
    }
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    seen["chat"] = processor.apply_chat_template(chat)
    chat[0]["content"][0]["image"] = small
    talk = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    plain = processor(text="Hi", images=small, return_tensors="pt")
    seen["chat_inputs"] = all(torch.equal(talk[key], plain[key]) for key in plain) and set(
        talk
    ) == set(plain)
    chat += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
    seen["chat_turns"] = processor.tokenizer.apply_chat_template(chat, tokenize=False)

    texts = (folder.parent / "typed.txt").read_text().splitlines()
    seen["typed"] = {text: processor(text=text)["input_ids"][0].tolist() for text in texts}
    files = sorted((folder.parent / "pictures").iterdir())
    seen["files"] = {file.name: processor(text="Hi", images=file)["images"][0] for file in files}
    seen["opened"] = {
        file.name: processor(text="Hi", images=Image.open(file))["images"][0] for file in files
    }
    written = processor.apply_chat_template(chat)
    two = processor(text=written, images=small)["input_ids"]
    seen["two_steps"] = torch.equal(
        two, processor.apply_chat_template(chat, tokenize=True)["input_ids"]
    )

    known = model.config.max_position_embeddings
    model.config.max_position_embeddings = int(both["attention_mask"].sum(1).max()) + 3
    seen["to_the_end"] = {}
    for name, options in (
        ("greedy", {"do_sample": False}),
        ("sampled", {"do_sample": True}),
        ("beams", {"num_beams": 2}),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            out = model.generate(**both, max_new_tokens=400, eos_token_id=None, **options)
        said = [str(one.message) for one in said if "position" in str(one.message)]
        seen["to_the_end"][name] = (
            out[:, both["input_ids"].shape[1] :],
            both["attention_mask"].sum(1),
            said,
        )
    model.config.max_position_embeddings = int(inputs["input_ids"].shape[1])
    try:
        model.generate(**inputs, max_new_tokens=1)
        seen["too_long"] = ""
    except ValueError as error:
        seen["too_long"] = str(error)
    model.config.max_position_embeddings = known

    labels = inputs["input_ids"].clone()
    labels[:, :-5] = -100
    loss = model.train()(**inputs, labels=labels).loss
    loss.backward()
    seen["loss"] = loss.detach()
    seen["gradients"] = all(
        p.grad is not None
        for n, p in model.named_parameters()
        if "layers.1" in n and "vision" not in n
    )

    again = folder.parent / (folder.name + "_again")
    model.save_pretrained(again)
    processor.save_pretrained(again)
    processor = AutoProcessor.from_pretrained(again, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True).eval()
    with torch.no_grad():
        seen["logits_again"] = model(
            **processor(text=question, images=wide, return_tensors="pt")
        ).logits
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    seen = {
        folder.name: run(folder)
        for folder in sorted(root.glob("hub_*"))
        if not folder.name.endswith("_again")
    }
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec((root / "readme.py").read_text(), {})
    seen["readme"] = said.getvalue().strip()
    seen["modules"] = sorted({name.split(".")[0] for name in sys.modules})
    seen["torchvision"] = is_torchvision_available()
    torch.save(seen, root / "seen.pt")
