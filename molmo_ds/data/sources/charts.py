"""Charts, plots and tables: ChartQA, DVQA, FigureQA, PlotQA, TabMWP.

Layouts: the card of HuggingFaceM4/ChartQA (human_or_machine: 0 human, 1 machine), and the official JSON of the others
as the loaders of allenai/molmo read it. The reference takes 1 for human; here people's questions get the larger weight.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Item, Row, Source, annotation, asks, picture, read_json

# questions of ChartQA's train split
HUMAN = 7398
MACHINE = 20901
# both halves count the same
HUMAN_WEIGHT, MACHINE_WEIGHT = (2 * n / (HUMAN + MACHINE) for n in (MACHINE, HUMAN))


def chart_qa(row: Row, split: str, weighted: bool = False, style: str = "chart_qa") -> list[Item]:
    """Questions by people and by a program, in training weighted 1.4772 and 0.5228 if at all."""
    human = row["human_or_machine"] in (0, "human")
    weight = None
    if weighted and split == "train":
        weight = HUMAN_WEIGHT if human else MACHINE_WEIGHT
    asked = annotation(style, question=row["query"], answers=list(row["label"]), weight=weight)
    return [Item(picture(row["image"]), [asked], {"is_human": human})]


def read_figures(folder: Path, split: str) -> Iterator[Row]:
    """FOLDER/qa_pairs.json and FOLDER/png/NUMBER.png, as both FigureQA and PlotQA have them."""
    for row in read_json(folder, f"{split}/qa_pairs.json")["qa_pairs"]:
        yield {**row, "image": f"{split}/png/{row['image_index']}.png"}


def read_tab_mwp(folder: Path, split: str) -> Iterator[Row]:
    """problems_SPLIT.json maps the number to the problem."""
    theirs = "dev" if split == "validation" else split
    for number, row in read_json(folder, f"problems_{theirs}.json").items():
        yield {**row, "example_id": int(number), "image": f"tables/{number}.png"}


_CHANGED = (
    "chart_qa has equal weights, as in the reference; until 2026-11-29 its training questions were weighted here,"
    " which is now chart_qa_weighted."
)
_BUILDERS = "allenai/molmo, olmo/hf_datasets"

SOURCES = [
    *(
        Source(
            name,
            "GPL-3.0",
            "card of HuggingFaceM4/ChartQA",
            functools.partial(chart_qa, **known),
            splits={"train": "train", "validation": "val", "test": "test"},
            hub="HuggingFaceM4/ChartQA",
            changed=changed,
        )
        for name, known, changed in (
            ("chart_qa", {}, _CHANGED),
            ("chart_qa_weighted", {"weighted": True}, ""),
            ("chart_qa_exp", {"style": "chart_qa_exp"}, ""),  # answers that explain themselves
        )
    ),
    Source(
        "dv_qa",
        "CC BY-NC 4.0*",
        f"{_BUILDERS}/dv_qa.py",
        asks("dv_qa", "images/{image}", image_id="image"),
        splits={"train": "train", "validation_easy": "val_easy", "validation_hard": "val_hard"},
        group="image",
        read=lambda folder, split: read_json(
            folder, f"{split.replace('validation', 'val')}_qa.json"
        ),
        by_hand="unpack pictures and annotations of https://github.com/kushalkafle/DVQA_dataset so that DIR holds"
        " train_qa.json, val_easy_qa.json, val_hard_qa.json and images/",
    ),
    Source(
        "figure_qa",
        "Microsoft Research data licence*",
        f"{_BUILDERS}/figure_qa.py",
        # its answers are 0 and 1
        asks("figure_qa", question="question_string", image_id="image_index"),
        splits={"train": "train1", "validation1": "validation1", "validation2": "validation2"},
        group="image",
        read=lambda folder, split: read_figures(folder, "train1" if split == "train" else split),
        by_hand="unpack the archives of https://www.microsoft.com/en-us/research/project/figureqa-dataset so that DIR"
        " holds train1/, validation1/, validation2/, each with qa_pairs.json and png/",
    ),
    Source(
        "plot_qa",
        "CC BY 4.0*",
        f"{_BUILDERS}/plot_qa.py (rows); the folders are our own",
        asks("plot_qa", question="question_string", image_id="image_index"),
        group="image",
        read=read_figures,
        confirmed=False,
        by_hand="unpack pictures and questions (V1) of https://github.com/NiteshMethani/PlotQA so that DIR holds"
        " train/, validation/, test/, each with qa_pairs.json and png/",
    ),
    Source(
        "tabwmp_da",
        "CC BY-NC-SA 4.0*",
        f"{_BUILDERS}/tabmwp.py",
        asks("tabwmp_da", example_id="example_id"),  # word problems, answered directly
        aliases=("tab_mwp",),
        read=read_tab_mwp,
        by_hand="clone https://github.com/lupantech/PromptPG; DIR is its data/tabmwp",
    ),
]
