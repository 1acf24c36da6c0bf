"""molmo_ds inside evaluation kits: by stand-ins that make their calls, and by a kit itself where it is installed."""

import importlib.util
import io
import sys
from pathlib import Path

import kit_stand_ins
import pytest
import torch
from eval_files import make, picture
from PIL import Image

from molmo_ds.eval.kits.answering import FREE, Kit, encoded, question_of, style_of
from molmo_ds.infer import load
from molmo_ds.infer.generate import Options
from molmo_ds.testing import lmms_task

QUESTIONS = ["What is this?", "How bright is it?", "Which colour?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny weights that say something."""
    return make(tmp_path_factory.mktemp("kits")) / "model"


def ours(model: Path, question: str, shade: int, style: str, tokens: int) -> str:
    """The answer of the checkpoint asked directly."""
    answerer = load.load(model)
    prompt = answerer.builder.prompt([picture(shade)], {"style": style, "question": question})
    [text], _ = answerer.answer([prompt], Options(max_new_tokens=tokens))
    return text


def test_styles() -> None:
    named = {
        "chartqa": "chart_qa",
        "ChartQA_TEST": "chart_qa",
        "docvqa_val": "doc_qa",
        "TextVQA_VAL": "text_vqa",
    }
    named |= {
        "InfoVQA_VAL": "info_qa",
        "ai2d": "ai2_diagram",
        "AI2D_TEST": "ai2_diagram",
        "vqav2_val": "vqa2",
    }
    named |= {"mmmu_val": "a_okvqa_mc", "MMVet": FREE, "llava_bench": FREE, "pope": FREE}
    assert {task: style_of(task) for task in named} == named
    asked = "How many?\nAnswer the question using a single word or phrase."
    assert question_of(asked, "chart_qa") == "How many?" and question_of(asked, FREE) == asked


def test_answers_come_in_order_and_what_cannot_be_asked_is_said(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = Kit(str(model), batch=2)
    for shade, question in zip((0, 80, 160), QUESTIONS):
        kit.add("textvqa_val", [question], [Image.open(io.BytesIO(picture(shade)))], 4)
    kit.add("textvqa_val", ["What?"], [b"no picture"], 4)
    kit.add("mmvet", ["What?", "Red.", "Sure?"], [picture(0)], 4)
    *texts, (none, _), (chat, count) = kit.answers()
    wanted = [
        ours(model, question, shade, "text_vqa", 4)
        for shade, question in zip((0, 80, 160), QUESTIONS)
    ]
    assert [text for text, _ in texts] == wanted and any(wanted)
    assert none == "" and "Question 3 has no answer" in caplog.text
    assert count <= 4 and isinstance(chat, str)
    assert kit.answers() == []


def test_pictures() -> None:
    seen = Image.open(io.BytesIO(encoded(Image.new("RGBA", (3, 2), (9, 8, 7, 6)))))
    assert seen.size == (3, 2) and seen.mode == "RGB"
    with pytest.raises(ValueError, match="A picture is Tensor; Molmo sees pictures only"):
        encoded(torch.zeros(3, 2, 2))


def test_lmms_eval(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; see docs/guides/kits.md")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from molmo_ds.eval.kits import lmms_manifest

    MODEL_REGISTRY_V2.register_manifest(lmms_manifest(), overwrite=True)
    lmms_task.write(tmp_path, [picture(80 * i) for i in range(3)], QUESTIONS, 4)
    found = simple_evaluate(
        model="molmo_ds",
        model_args=f"checkpoint={model}",
        tasks=[lmms_task.NAME],
        batch_size=2,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    said = {row["doc_id"]: row["filtered_resps"][0] for row in found["samples"][lmms_task.NAME]}
    wanted = [ours(model, question, 80 * i, "text_vqa", 4) for i, question in enumerate(QUESTIONS)]
    assert [said[i] for i in range(3)] == wanted
    assert found["results"][lmms_task.NAME]["exact_match,none"] == 0.0


@pytest.fixture(params=["stand-in", "installed"])
def vlmevalkit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `import vlmeval` finds."""
    if request.param == "stand-in":
        stand_ins(monkeypatch)
    elif importlib.util.find_spec("vlmeval") is None:
        pytest.skip("VLMEvalKit is not installed; see docs/guides/kits.md")


def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for both kits, which the adapters are imported against."""
    for name, module in kit_stand_ins.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("lmms", "vlmevalkit"):
        whole = f"molmo_ds.eval.kits.{name}"
        monkeypatch.setitem(sys.modules, whole, None)  # what was there comes back at the end
        del sys.modules[whole]


def test_the_calls_of_lmms_eval(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins(monkeypatch)
    from molmo_ds.eval.kits.lmms import Molmo

    options = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    asked = Molmo.create_from_arg_string(f"checkpoint={model},max_crops=36", options)
    docs = {number: (question, picture(80 * number)) for number, question in enumerate(QUESTIONS)}
    asked.task_dict["textvqa_val"] = {"test": docs}

    def to_messages(doc: tuple[str, bytes]) -> list[dict]:
        image = {"type": "image", "url": Image.open(io.BytesIO(doc[1]))}
        text = {
            "type": "text",
            "text": doc[0] + "\nAnswer the question using a single word or phrase.",
        }
        return [{"role": "user", "content": [image, text]}]

    generation = {"max_new_tokens": 4, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    requests = [
        kit_stand_ins.Instance(("", to_messages, dict(generation), number, "textvqa_val", "test"))
        for number in docs
    ]
    found = asked.generate_until(requests)
    wanted = [ours(model, question, 80 * i, "text_vqa", 4) for i, question in enumerate(QUESTIONS)]
    assert [one.text for one in found] == [text.split("\n\n")[0].strip() for text in wanted]
    assert any(wanted) and all(1 <= one.token_counts.output_tokens <= 4 for one in found)


def test_vlmevalkit(model: Path, tmp_path: Path, vlmevalkit: None) -> None:
    import pandas
    from vlmeval.config import supported_VLM
    from vlmeval.inference import infer_data
    from vlmeval.smp import load as read

    from molmo_ds.eval.kits.vlmevalkit import register

    class Made:
        """A data set as the kit has them."""

        dataset_name = "ChartQA_TEST"
        data = pandas.DataFrame(
            {"index": [7, 8, 9], "question": QUESTIONS, "A": ["red", "blue", None]}
        )

        def __len__(self) -> int:
            return len(self.data)

        def dump_image(self, line: dict) -> list[str]:
            file = tmp_path / f"{line['index']}.png"
            file.write_bytes(picture(80 * (line["index"] - 7)))
            return [str(file)]

    register("mine", str(model), max_new_tokens=4)
    assert "mine" in supported_VLM
    out = tmp_path / "out.pkl"
    infer_data("mine", "mine", str(tmp_path), Made(), str(out))
    asked = ["What is this?\nA: red\n", "How bright is it?\nA: blue\n", "Which colour?"]
    wanted = [ours(model, question, 80 * i, "chart_qa", 4) for i, question in enumerate(asked)]
    assert list(read(str(out)).values()) == wanted and any(wanted)
    free = supported_VLM["mine"]()
    assert not free.use_custom_prompt("MMVet") and free.use_custom_prompt("AI2D_TEST")
    with pytest.raises(ValueError, match="not about videos"):
        free.generate_inner([{"type": "video", "value": "a.mp4"}], "MVBench")
