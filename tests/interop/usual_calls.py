"""What people do with an exported folder, in any version of transformers; started by test_transformers.py.

    python usual_calls.py FOLDER WANT.pt SAID.json [CALL ...]

WANT.pt holds what the package itself answers; SAID.json receives "" or what failed for each call.
"""

import base64
import copy
import importlib.util
import inspect
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

QUESTION = "Describe this picture."
REMOTE = {"trust_remote_code": True}
GREEDY = {"max_new_tokens": 8, "do_sample": False}


class Said:
    """An exported folder, loaded, and what the package answers for it."""

    def __init__(self, folder: Path, want: dict[str, Any]):
        self.folder = folder
        self.want = want
        self.model = AutoModelForCausalLM.from_pretrained(folder, **REMOTE).float().eval()
        self.processor = AutoProcessor.from_pretrained(folder, **REMOTE)
        self.picture = Image.fromarray(want["picture"])

    def inputs(self, **options: Any) -> Any:
        """Those of the quick start."""
        options = {"text": QUESTION, "images": self.picture} | options
        return self.processor(**options, return_tensors="pt")

    def answer(self, model: Any = None, inputs: Any = None, **options: Any) -> list[int]:
        """The tokens that a greedy answer adds."""
        inputs = self.inputs() if inputs is None else inputs
        out = (model or self.model).generate(**inputs, **GREEDY | options)
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    def loss(self, model: Any = None, **options: Any) -> torch.Tensor:
        """The loss of the last words of the prompt."""
        inputs = self.inputs()
        labels = inputs["input_ids"].clone()
        labels[:, :-5] = -100
        return (model or self.model)(**inputs, labels=labels, **options).loss


def same(a: Any, b: Any) -> None:
    """Two sets of inputs, or tensors up to rounding."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
        return
    assert set(a) == set(b), (set(a), set(b))
    for key in a:
        assert torch.equal(a[key], b[key]), key


def config_and_tokenizer(said: Said) -> None:
    config = AutoConfig.from_pretrained(said.folder, **REMOTE)
    assert config.model_type == "molmo"
    words = AutoTokenizer.from_pretrained(said.folder, **REMOTE)
    assert words.convert_tokens_to_ids("<im_patch>") == config.vocab_size + 2
    chat = words.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("User: Hi Assistant:")
    text = "a boat , isn 't it ?"  # as training decodes, without the cleaning that some tokenizers ask for
    ids = words(text, add_special_tokens=False)["input_ids"]
    assert words.decode(ids) == said.processor.decode(ids) == text


def logits(said: Said) -> None:
    with torch.no_grad():
        same(said.model(**said.inputs()).logits, said.want["logits"])


def greedy(said: Said) -> None:
    assert said.answer() == said.want["greedy"]
    assert said.answer(use_cache=False) == said.want["greedy"]


def one_token_a_step(said: Said) -> None:
    """With a cache, which transformers 5.24 has given another name."""
    inputs = said.inputs()
    widths: list[int] = []

    def count(module: torch.nn.Module, words: tuple, named: dict[str, Any]) -> None:
        widths.append(named["input_ids"].shape[1])

    hook = said.model.register_forward_pre_hook(count, with_kwargs=True)
    said.answer(inputs=inputs)
    hook.remove()
    assert widths == [inputs["input_ids"].shape[1]] + [1] * (len(widths) - 1), widths
    assert len(widths) > 2


def cache_goes_on(said: Said) -> None:
    """The cache that a forward pass gives back, given to the next."""
    inputs = said.inputs()
    with torch.no_grad():
        first = said.model(**inputs, use_cache=True)
        token = first.logits[:, -1:].argmax(-1)
        name = next(key for key in ("cache", "past_key_values") if key in first)
        mask = torch.cat((inputs["attention_mask"], torch.ones_like(token)), 1)
        for given in (name, "past_key_values"):
            kept = copy.deepcopy(getattr(first, name))
            words = {"input_ids": token, "attention_mask": mask, given: kept}
            second = said.model(**words).logits[0, -1].argmax()
            assert [int(token), int(second)] == said.want["greedy"][:2], given


def beams(said: Said) -> None:
    assert said.answer(num_beams=3, max_new_tokens=5) == said.want["beams"]


def sampling(said: Said) -> None:
    torch.manual_seed(0)
    drawn = said.answer(do_sample=True, top_k=20, top_p=0.9, temperature=0.7)
    assert 0 < len(drawn) <= 8


def left_padded_batch(said: Said) -> None:
    texts = [QUESTION, "And this?"]
    batch = said.processor(text=texts, images=[said.picture, None], padding=True)
    out = said.model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    assert out[0].tolist()[: len(said.want["greedy"])] == said.want["greedy"]
    alone = said.answer(inputs=said.processor(text=texts[1]))
    assert out[1].tolist()[: len(alone)] == alone


def from_batch(said: Said) -> None:
    row = said.processor.process(images=[said.picture], text=QUESTION)
    batch = {key: value.unsqueeze(0) for key, value in row.items()}
    options = GenerationConfig(max_new_tokens=8, stop_strings="<|endoftext|>", do_sample=False)
    width = len(row["input_ids"])
    for more in ({}, {"use_cache": False}, {"attention_mask": torch.ones(1, width).long()}):
        out = said.model.generate_from_batch(
            batch, options, tokenizer=said.processor.tokenizer, **more
        )
        assert out[0, width:].tolist() == said.want["greedy"], more


def static_cache(said: Said) -> None:
    model = copy.deepcopy(said.model)  # 4.46 leaves the cache in it
    assert said.answer(model, cache_implementation="static") == said.want["greedy"]


def automodels(said: Said) -> None:
    for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq"):
        kind = getattr(transformers, name, None)
        if kind is not None:  # transformers 5 has two of them
            model = kind.from_pretrained(said.folder, **REMOTE).float().eval()
            assert said.answer(model) == said.want["greedy"], name


def pipeline(said: Said) -> None:
    if version("4.47"):
        return  # it has no such pipeline
    more = {"processor": said.processor} if version("4.57") else {}  # it reads none by itself
    pipe = transformers.pipeline("image-text-to-text", model=str(said.folder), **REMOTE, **more)
    talk = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": said.picture},
                {"type": "text", "text": QUESTION},
            ],
        }
    ]
    options = {"return_full_text": False, "max_new_tokens": 8}
    found = pipe(text=talk, **options)
    want = said.processor.decode(said.want["greedy"])
    assert found[0]["generated_text"].strip() == want.strip(), found


def two_steps(said: Said) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    talk = [{"role": "user", "content": parts}]
    for text in (
        said.processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True),
        str(said.processor.apply_chat_template(talk, tokenize=False)),
        said.processor.tokenizer.apply_chat_template(talk, tokenize=False),
    ):
        same(said.inputs(), said.inputs(text=text))
        same(said.inputs(), said.inputs(text=[text], images=[said.picture], videos=[], audios=[]))


def openai_parts(said: Said) -> None:
    stream = io.BytesIO()
    said.picture.save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "image", "url": said.picture},
        {"type": "image", "image": said.picture},
    ):
        talk = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]
        got = said.processor.apply_chat_template(
            talk, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        same(said.inputs(), got)


def arguments(said: Said) -> None:
    for more in (
        {"videos": None, "audio": None},
        {"videos": [], "audios": [], "padding": True},
        {"truncation": True, "max_length": 512},
        {"padding": "longest", "add_special_tokens": False},
    ):
        same(said.inputs(), said.inputs(**more))
    for wrong in ({"videos": ["a.mp4"]}, {"audios": [[0.0]]}, {"audio": [0.0]}):
        try:
            said.inputs(**wrong)
        except ValueError:
            continue
        raise AssertionError(f"{wrong} is lost")


def pictures(said: Said) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a picture.png"
        said.picture.save(path)
        array = np.asarray(said.picture)
        kinds = [str(path), path, f"file://{path}", array, torch.from_numpy(array).permute(2, 0, 1)]
        for kind in kinds:
            same(said.inputs(), said.inputs(images=kind))
            same(said.inputs(), said.inputs(images=[kind]))
    grey = np.asarray(said.picture.convert("L"))
    same(said.inputs(images=Image.fromarray(grey)), said.inputs(images=grey))


def image_processor(said: Said) -> None:
    whole = said.inputs()
    made = said.processor.image_processor(said.picture, return_tensors="pt")
    assert torch.equal(made["images"][0], whole["images"][0])
    assert torch.equal(made["image_masks"][0], whole["image_masks"][0])
    two = said.processor.image_processor([said.picture, said.picture.resize((40, 40))])
    assert len(two["images"]) == 2


def image_labels(said: Said) -> None:
    inputs = said.inputs()
    labels = inputs["input_ids"].clone()
    loss = said.model(**inputs, labels=labels).loss
    first = said.model.config.vocab_size
    labels[(labels >= first) & (labels < first + 5)] = -100
    same(loss, said.model(**inputs, labels=labels).loss)
    halves = [said.model(**inputs, labels=labels, num_items_in_batch=n).loss for n in (1, 2)]
    same(halves[0], 2 * halves[1])


def embeddings(said: Said) -> None:
    inputs = dict(said.inputs())
    ids = inputs.pop("input_ids")
    vectors = said.model.get_input_embeddings()(ids)
    with torch.no_grad():
        same(said.model(inputs_embeds=vectors, **inputs).logits, said.want["logits"])
    for cached in (True, False):
        out = said.model.generate(inputs_embeds=vectors, **inputs, **GREEDY, use_cache=cached)
        assert out[0].tolist() == said.want["greedy"]
    table = said.model.get_input_embeddings().weight
    assert torch.equal(table[ids], vectors)


def resizing(said: Said) -> None:
    model = copy.deepcopy(said.model)
    model.config = copy.deepcopy(model.config)
    words = model.config.embedding_size
    model.resize_token_embeddings(words + 40)
    with torch.no_grad():
        grown = model(**said.inputs()).logits
    assert grown.shape[-1] == words + 40
    same(grown[..., :words], said.want["logits"])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, **REMOTE).float().eval()
        with torch.no_grad():
            same(again(**said.inputs()).logits, grown)
    model.resize_token_embeddings(words)
    with torch.no_grad():
        same(model(**said.inputs()).logits, said.want["logits"])


def gradient_checkpointing(said: Said) -> None:
    model = copy.deepcopy(said.model).train()
    seen = []
    for options in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        if options is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model.zero_grad()
        said.loss(model).backward()
        seen.append({name: p.grad.clone() for name, p in model.named_parameters() if has(p)})
    assert len(seen[0]) > 50
    for other in seen[1:]:
        assert set(other) == set(seen[0])
        for name, grad in other.items():
            same(grad, seen[0][name])
    model.gradient_checkpointing_disable()
    model.enable_input_require_grads()
    assert said.loss(model).requires_grad


def has(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None


def hidden_states(said: Said) -> None:
    with torch.no_grad():
        out = said.model(**said.inputs(), output_hidden_states=True, output_attentions=True)
        same(out.logits, said.want["logits"])
        layers = said.model.config.num_hidden_layers
        assert len(out.hidden_states) == layers + 1 and len(out.attentions) == layers
        same(said.model.get_output_embeddings()(out.hidden_states[-1]), out.logits)
        for weights in out.attentions:
            same(weights.sum(-1), torch.ones_like(weights[..., 0]))
            assert not weights.triu(1).any()
        plain = said.model(**said.inputs(), return_dict=False)
        assert isinstance(plain, tuple) and torch.is_tensor(plain[0])
    out = said.model.generate(
        **said.inputs(), max_new_tokens=3, output_hidden_states=True, return_dict_in_generate=True
    )
    assert len(out.hidden_states) == out.sequences.shape[1] - said.inputs()["input_ids"].shape[1]


def save_again(said: Said) -> None:
    with tempfile.TemporaryDirectory() as folder:
        said.model.save_pretrained(folder)
        said.processor.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, **REMOTE).float().eval()
        words = AutoProcessor.from_pretrained(folder, **REMOTE)
        same(said.inputs(), words(text=QUESTION, images=said.picture))
        assert said.answer(again) == said.want["greedy"]
        assert keys(Path(folder)) == keys(said.folder)


def keys(folder: Path) -> set[str]:
    from safetensors import safe_open

    files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
    return {key for file in files for key in file.keys()}  # noqa: SIM118


def own_shards(said: Said) -> None:
    from safetensors.torch import load_file

    model = copy.deepcopy(said.model)
    shards = [load_file(file) for file in sorted(said.folder.glob("*.safetensors"))]
    found = model.load_state_dict({key: t for shard in shards for key, t in shard.items()})
    assert not found.missing_keys and not found.unexpected_keys


def disk_offload(said: Said) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(
            said.folder,
            **REMOTE,
            device_map="auto",
            max_memory={"cpu": "150KB"},
            offload_folder=folder,
            torch_dtype=torch.float32,
        )
        places = set(map(str, model.hf_device_map.values()))
        assert "disk" in places, places
        assert said.answer(model) == said.want["greedy"]


def dispatch(said: Said) -> None:
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(said.model.config, **REMOTE)
    with tempfile.TemporaryDirectory() as folder:
        model = load_checkpoint_and_dispatch(
            model,
            str(said.folder),
            device_map="auto",
            max_memory={"cpu": "150KB"},
            offload_folder=folder,
            no_split_module_classes=model._no_split_modules,
        ).eval()
        assert said.answer(model) == said.want["greedy"]


def lora(said: Said) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    targets = ["att_proj", "ff_proj", "attn_out", "ff_out"]  # olmOCR's recipe
    torch.manual_seed(0)
    for options in ({"target_modules": targets}, {"target_modules": "all-linear"}):
        if said.model.config.molmo_ds["text"]["num_experts"] and "ff_out" in str(options):
            continue
        adapted = get_peft_model(
            copy.deepcopy(said.model), LoraConfig(r=2, lora_alpha=4, **options)
        )
        loss = said.loss(adapted)
        loss.backward()
        with torch.no_grad():
            learnt = [p for p in adapted.parameters() if p.requires_grad]
            assert len(learnt) > 8 and all(p.grad is not None for p in learnt if p.ndim == 0)
            for p in learnt:
                p.add_(torch.randn_like(p) * 0.02)
        after = said.loss(adapted)
        assert abs(float(after) - float(loss)) > 1e-6
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            again = PeftModel.from_pretrained(copy.deepcopy(said.model), folder)
            same(said.loss(again), after)
        same(said.loss(adapted.merge_and_unload()), after)


def vlmevalkit(said: Said) -> None:
    """What VLMEvalKit's class `molmo` does (main of 2026-08-18, vlmeval/vlm/molmo.py), with the CPU for cuda."""
    dtype = {"torch_dtype": torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(said.folder, **REMOTE, **dtype, device_map="cpu")
    processor = AutoProcessor.from_pretrained(said.folder, **REMOTE, **dtype)
    prompt = f"User: text_vqa: {QUESTION} Assistant:"
    inputs = processor.process(images=[said.picture], text=prompt, images_kwargs={"max_crops": 36})
    inputs = {k: v.to(model.device).unsqueeze(0) for k, v in inputs.items()}
    with torch.autocast(device_type="cpu", enabled=True, dtype=torch.bfloat16):
        output = model.generate_from_batch(
            inputs,
            GenerationConfig(max_new_tokens=20, stop_strings="<|endoftext|>"),
            tokenizer=processor.tokenizer,
            use_cache=False,
        )
    new = output[0, inputs["input_ids"].size(1) :]
    text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert isinstance(text, str) and 0 < len(new) <= 20
    want = processor.process(
        images=[said.picture], text=f"text_vqa: {QUESTION}", images_kwargs={"max_crops": 36}
    )
    assert torch.equal(inputs["input_ids"][0], want["input_ids"])
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)


def lmms_eval(said: Said) -> None:
    """What lmms-eval 0.7.3 does (models/chat/huggingface.py) with two rows, the second without a picture."""
    model = transformers.AutoModel.from_pretrained(
        said.folder, **REMOTE, torch_dtype="bfloat16", device_map="cpu"
    ).eval()
    processor = AutoProcessor.from_pretrained(said.folder, **REMOTE)
    tokenizer = AutoTokenizer.from_pretrained(said.folder, **REMOTE)
    parts = [{"type": "image", "image": said.picture}, {"type": "text", "text": QUESTION}]
    talks = [[{"role": "user", "content": parts}], [{"role": "user", "content": parts[1:]}]]
    texts = [
        processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        for talk in talks
    ]
    media = {"images": [said.picture], "videos": [], "audios": []}
    inputs = processor(text=texts, padding=True, return_tensors="pt", **media).to("cpu")
    found = model.generate(
        **inputs,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        temperature=None,
        top_p=None,
        num_beams=1,
        max_new_tokens=16,  # 4096 where the task does not say
        use_cache=True,
    )
    new = [out[len(ids) :] for ids, out in zip(inputs.input_ids, found)]
    answers = processor.batch_decode(
        new, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert len(answers) == 2 and all(len(ids) for ids in new)
    alone = processor(text=QUESTION, images=said.picture)["input_ids"][0]
    assert inputs.input_ids[0, -len(alone) :].tolist() == alone.tolist()


def typed_words(said: Said) -> None:
    inputs = said.inputs(text="what is <im_patch>?")
    patch = said.processor.special_token_ids["<im_patch>"]
    patches = int((inputs["input_ids"] == patch).sum())
    assert patches == int((inputs["image_input_idx"] >= 0).sum())


def trainer(said: Said) -> None:
    from transformers import Trainer, TrainingArguments

    inputs = said.inputs()
    labels = torch.where(
        inputs["input_ids"] < said.model.config.vocab_size, inputs["input_ids"], -100
    )
    row = {**inputs, "labels": labels}
    row = {key: value[0] for key, value in row.items()}
    left = []
    for batch in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "output_dir": folder,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": 2 // batch,
                "max_steps": 2,
                "learning_rate": 1e-2,
                "optim": "sgd",
                "lr_scheduler_type": "constant",
                "max_grad_norm": 1e9,
                "report_to": "none",
                "save_strategy": "no",
                "use_cpu": True,
                "remove_unused_columns": False,
                "disable_tqdm": True,
                "logging_steps": 1,
            }
            model = copy.deepcopy(said.model)
            Trainer(model, TrainingArguments(**options), train_dataset=[row] * 4).train()
            left.append(model.get_output_embeddings().weight.detach())
    assert not torch.equal(left[0], said.model.get_output_embeddings().weight)
    same(left[0], left[1])  # gradients of two rows, added up or at once


def version(least: str) -> bool:
    """Whether this transformers is older."""
    parts = [
        [int(part) for part in text.split(".")[:2]] for text in (transformers.__version__, least)
    ]
    return parts[0] < parts[1]


NEEDS = {
    "lora": "peft",
    "trainer": "accelerate",
    "dispatch": "accelerate",
    "disk_offload": "accelerate",
}
CALLS: dict[str, Callable[[Said], None]] = {
    name: call
    for name, call in list(globals().items())
    if inspect.isfunction(call) and list(inspect.signature(call).parameters) == ["said"]
}


def main(folder: str, want: str, out: str, *names: str) -> None:
    """Make the calls, and write what failed."""
    torch.set_num_threads(1)
    said = Said(Path(folder), torch.load(want, weights_only=False))
    failed = {}
    for name in names or CALLS:
        package = NEEDS.get(name)
        if package and importlib.util.find_spec(package) is None:
            failed[name] = f"skipped: {package} is not installed"
            continue
        try:
            CALLS[name](said)
            failed[name] = ""
        except Exception as error:
            if os.environ.get("SAY"):
                traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    Path(out).write_text(json.dumps({"transformers": transformers.__version__} | failed, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
