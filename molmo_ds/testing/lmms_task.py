"""A made-up task of lmms-eval, in the files that its users write."""

import json
from collections.abc import Sequence
from pathlib import Path

NAME = "textvqa_made"


def write(folder: Path, pictures: Sequence[bytes], questions: Sequence[str], tokens: int) -> None:
    """A picture (a PNG), a question, and `red` as its answer in each row; `tokens`: the longest reply."""
    rows = []
    for number, (seen, asked) in enumerate(zip(pictures, questions, strict=True)):
        file = folder / f"{number}.png"
        file.write_bytes(seen)
        rows.append({"image": str(file), "question": asked, "answer": "red"})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "utils.py").write_text(CODE)
    (folder / "task.yaml").write_text(TASK.format(name=NAME, rows=data, tokens=tokens))


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_messages: !function utils.messages
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {tokens}, temperature: 0, do_sample: false, until: ["|"]}}
process_results: !function utils.results
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: [{{version: 0.0}}]
"""

CODE = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + "\\nAnswer the question using a single word or phrase."

def messages(doc, lmms_eval_specific_kwargs=None):
    parts = [{"type": "image", "url": visual(doc)[0]}, {"type": "text", "text": text(doc)}]
    return [{"role": "user", "content": parts}]

def results(doc, results):
    return {"exact_match": float(results[0] == doc["answer"])}
"""
