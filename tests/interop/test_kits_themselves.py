"""lmms-eval and VLMEvalKit as they are, on made-up rows: an export, the adapters of molmo_ds, and our server.

Each answer is the one that the same model gives when it is asked directly.
"""

import base64
import io
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from environments import clean, environment_at, folder
from exported import Exported, config_of, export, picture
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, GenerationConfig

from molmo_ds.infer.generate import Options
from molmo_ds.infer.load import load
from molmo_ds.testing import lmms_task
from molmo_ds.testing.random_weights import random_state
from molmo_ds.testing.serving import Server

pytestmark = pytest.mark.everything
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LMMS = ("lmms-eval==0.7.3", "filelock<3.20", "num2words")  # the last for VLMEvalKit
VLMEVALKIT = "e8e78f0"  # main of 2026-08-18, a clone of which lies in the folder of environments
SHORT = "\nAnswer the question using a single word or phrase."  # both kits add it
QUESTIONS = ("What is this?", "How bright is it?", "Which colour?")
TOKENS = 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    config = config_of("qwen2", vocab_size=300, embedding_size=300)  # of which each is a text
    state = random_state(config, 15)  # with which it answers each style and question otherwise
    state["head.lm_head.weight"][:256] = 0  # whole words rather than bytes
    return export(tmp_path_factory.mktemp("kits"), config, state)


@pytest.fixture(scope="module")
def server(exported: Exported) -> Iterator[str]:
    mine = Server(exported.weights, model="molmo")
    replica = load(exported.weights).replica(4)
    with mine.front_in_a_thread(), mine.engine_in_a_thread(replica):
        yield mine.url


@pytest.fixture(scope="module")
def python() -> Path:
    return environment_at("lmms-eval", *LMMS)


def pictures() -> list[bytes]:
    """A PNG for each question; VLMEvalKit's API models enlarge what has an edge below 100 pixels."""
    return [encoded(Image.fromarray(picture(104 + 20 * i, 100)), "PNG") for i in range(3)]


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def ours(
    exported: Exported,
    style: str,
    after: str = "",
    kind: str = "PNG",
    questions: Sequence[str] = QUESTIONS,
) -> list[str]:
    """What the checkpoint answers, asked directly."""
    answerer = load(exported.weights)
    prompts = [
        answerer.builder.prompt(
            [encoded(Image.open(io.BytesIO(seen)), kind)],
            {"style": style, "question": asked + after},
        )
        for seen, asked in zip(pictures(), questions, strict=False)
    ]
    return [answerer.answer([prompt], Options(max_new_tokens=TOKENS))[0][0] for prompt in prompts]


def run(python: Path, script: str, *words: Any, path: str = str(ROOT)) -> Any:
    """What a script said, which imports from `path`."""
    out = Path(words[-1])
    done = subprocess.run(
        [str(python), str(HERE / script), *map(str, words)],
        capture_output=True,
        text=True,
        env=clean(PYTHONPATH=path, HF_HOME=str(out.parent / "hf")),
        cwd=out.parent,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def loaded(exported: Exported) -> tuple[Any, Any]:
    """Model and processor of the export in bfloat16, which both kits take."""
    remote = {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(exported.folder, dtype=torch.bfloat16, **remote)
    return model.eval(), AutoProcessor.from_pretrained(exported.folder, **remote)


def test_lmms_eval(exported: Exported, server: str, python: Path, tmp_path: Path) -> None:
    lmms_task.write(tmp_path, pictures(), QUESTIONS, TOKENS)
    pretrained = f"pretrained={exported.folder},device=cpu,device_map=cpu,trust_remote_code=True"
    api = f"model=molmo,base_url={server}/v1,api_key=none,timeout=300,max_retries=1"
    calls = [
        {"model": "huggingface", "model_args": pretrained, "batch_size": 1},
        {"model": "molmo_ds", "model_args": f"checkpoint={exported.weights}", "batch_size": 2},
        {"model": "openai", "model_args": api, "batch_size": 1},
    ]
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    said = run(python, "lmms_calls.py", tmp_path, tmp_path / "calls.json", tmp_path / "said.json")

    model, processor = loaded(exported)
    wanted = []
    for seen, asked in zip(pictures(), QUESTIONS, strict=True):
        inputs = processor(text=asked + SHORT, images=Image.open(io.BytesIO(seen)))
        found = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        wanted.append(processor.decode(found[0, inputs["input_ids"].shape[1] :]))
    assert same(said[0]["answers"], wanted)
    assert same(said[1]["answers"], ours(exported, "text_vqa"))
    assert same(said[2]["answers"], ours(exported, "demo", SHORT))
    assert [row["figure"] for row in said] == [0, 0, 0]


def same(said: list[str], wanted: list[str]) -> bool:
    """Equal up to spaces at the ends, and not empty."""
    assert [text.strip() for text in said] == [text.strip() for text in wanted]
    return any(wanted)


@pytest.fixture(scope="module")
def kit() -> Path:
    """A clone of VLMEvalKit."""
    kit = folder() / "VLMEvalKit"
    if not (kit / "vlmeval").is_dir():
        clone = f"git clone https://github.com/open-compass/VLMEvalKit {kit}"
        pytest.skip(f"{kit} is missing: {clone}; git -C {kit} checkout {VLMEVALKIT}")
    words = ["git", "-C", str(kit), "rev-parse", "HEAD"]
    head = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert head.startswith(VLMEVALKIT), "another version than the docs speak of"
    return kit


def through_its_class(exported: Exported, prompts: list[str]) -> list[str]:
    """What VLMEvalKit's class `molmo` does with prompts about the pictures."""
    model, processor = loaded(exported)
    options = GenerationConfig(max_new_tokens=200, stop_strings="<|endoftext|>")
    answers = []
    for seen, text in zip(pictures(), prompts, strict=False):
        image = Image.open(io.BytesIO(seen)).convert("RGB")
        row = processor.process(images=[image], text=text, max_crops=36)
        batch = {name: value.unsqueeze(0) for name, value in row.items()}
        with torch.autocast("cpu", torch.bfloat16):
            found = model.generate_from_batch(
                batch, options, tokenizer=processor.tokenizer, use_cache=False
            )
        answers.append(processor.decode(found[0, batch["input_ids"].shape[1] :]))
    return answers


def test_vlmevalkit(
    exported: Exported, server: str, python: Path, kit: Path, tmp_path: Path
) -> None:
    rows = [
        [base64.b64encode(seen).decode(), asked, "red"]
        for seen, asked in zip(pictures(), QUESTIONS, strict=True)
    ]
    given = {"export": str(exported.folder), "weights": str(exported.weights), "server": server}
    given |= {"rows": rows, "out": str(tmp_path)}
    (tmp_path / "given.json").write_text(json.dumps(given))
    words = [kit, tmp_path / "given.json", tmp_path / "said.json"]
    said = run(python, "vlmeval_calls.py", *words, path=f"{ROOT}:{kit}")

    wanted = through_its_class(exported, [f"text_vqa: {asked}" for asked in QUESTIONS])
    assert same(said["export"]["answers"], wanted)
    assert same(said["weights"]["answers"], ours(exported, "text_vqa"))
    assert same(said["server"]["answers"], ours(exported, "demo", SHORT, "JPEG"))
    assert {row["figure"] for row in said.values()} == {0.0}


def test_run_py_of_vlmevalkit(
    exported: Exported, server: str, python: Path, kit: Path, tmp_path: Path
) -> None:
    """Questions of four kinds: short texts, numbers, options, yes or no."""
    asked = list(QUESTIONS[:2])
    shown = [base64.b64encode(seen).decode() for seen in pictures()[:2]]
    plain = {"index": [0, 1], "image": shown, "question": asked}
    options = {"A": ["a boat", "blue"], "B": ["a bird", "red"], "abcLabel": [0, 0]}
    tables = {
        "TextVQA_VAL": plain | {"answer": ["red", "red"]},
        "ChartQA_TEST": plain | {"answer": ["20", "3"], "split": ["test_human"] * 2},
        "AI2D_TEST": plain | options | {"answer": ["A", "B"], "category": ["food"] * 2},
        "POPE": plain | {"answer": ["Yes", "No"], "category": ["random"] * 2},
    }
    given = {"export": str(exported.folder), "weights": str(exported.weights), "server": server}
    given |= {"tables": tables, "out": str(tmp_path)}
    (tmp_path / "given.json").write_text(json.dumps(given))
    words = [kit, tmp_path / "given.json", tmp_path / "said.json"]
    said = run(python, "vlmeval_run.py", *words, path=f"{ROOT}:{kit}")
    lettered = [
        f"{question}\nA: {a}\nB: {b}"
        for question, a, b in zip(asked, options["A"], options["B"], strict=True)
    ]
    prompts = {
        "TextVQA_VAL": [f"text_vqa: {question}" for question in asked],
        "ChartQA_TEST": [f"chart_qa: {question}" for question in asked],
        "AI2D_TEST": [f"ai2_diagram: {question}" for question in lettered],
        "POPE": [f"vqa2: {question}" for question in asked],
    }
    for name, wanted in prompts.items():
        assert same(said["export"][name], through_its_class(exported, wanted))
    styles = {"TextVQA_VAL": "text_vqa", "ChartQA_TEST": "chart_qa", "POPE": "demo"}
    for name, style in styles.items():
        assert same(said["weights"][name], ours(exported, style, questions=asked))
        after = SHORT if name != "POPE" else ""
        direct = ours(exported, "demo", after, "JPEG", asked)
        assert same(said["molmo"][name], direct)
    ended = [f"{question}\n" for question in lettered]
    assert same(said["weights"]["AI2D_TEST"], ours(exported, "ai2_diagram", questions=ended))
    by_kit = [
        f"Question: {question}\nOptions:\nA. {a}\nB. {b}\n"
        "Please select the correct answer from the options above. \n"
        for question, a, b in zip(asked, options["A"], options["B"], strict=True)
    ]
    direct = ours(exported, "demo", kind="JPEG", questions=by_kit)
    assert same(said["molmo"]["AI2D_TEST"], direct)
    for model in said.values():
        scored = model["status"]["datasets"]
        assert {name: row["status"] for name, row in scored.items()} == dict.fromkeys(
            tables, "done"
        )
    # styles are seen: the model answers each otherwise
    assert len({tuple(said["export"][name]) for name in tables}) == len(tables)
