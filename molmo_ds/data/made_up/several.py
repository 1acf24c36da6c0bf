"""Rows of the sets of Molmo2's recipes about one picture or several, as each set publishes them."""

from collections.abc import Callable

from molmo_ds.data.made_up import rows
from molmo_ds.data.made_up.rows import Shown
from molmo_ds.data.sources.source import Row

COSYN = ("chart", "chemical", "diagram", "document", "math", "music", "table")
COSYN_PAGES = ("chart", "chemical", "diagram", "doc", "music", "table")
MANTIS = ("llava_665k_multi", "nlvr2", "spot-the-diff")


def explained(shown: Shown) -> list[Row]:
    """A drawing with questions, each with the way to its answer."""
    return [{"id": str(shown.number), "image": shown.image, "qa_pairs": _pairs(shown)}]


def explained_pages(shown: Shown) -> list[Row]:
    """Several drawings, asked about the first."""
    images = [one.image for one in shown.all]
    known = {"id": str(shown.number), "metadata": {"num_images": len(images)}}
    return [{**known, "images": images, "qa_pairs": _pairs(shown)}]


def _pairs(shown: Shown) -> dict[str, list[str]]:
    questions, answers = zip(*shown.asked(3))
    seen = shown.scene.caption()
    explanations = [f"{seen} So the answer is {answer}." for answer in answers]
    return {"question": [*questions], "explanation": explanations, "answer": [*answers]}


def places_asked(shown: Shown) -> list[Row]:
    labels = [*shown.scene.places()]
    points = [[{"x": x, "y": y} for x, y in shown.scene.percent(label)] for label in labels]
    row = {"id": str(shown.number), "image": shown.image, "names": labels, "answer_points": points}
    return [{**row, "questions": [f"Point to each {label}." for label in labels]}]


def people_ask_of_several(shown: Shown) -> list[Row]:
    urls = [one.address["image_url"] for one in shown.all]
    words = ", ".join(one.scene.word for one in shown.all)
    pairs = [
        {"question": "Which words are on the signs?", "answer": f"{words}."},
        {"question": "How many pictures are there?", "answer": f"{len(urls)}."},
    ]
    return [{"image_urls": urls, "qa_pairs": pairs}]


def places_in_several(shown: Shown) -> list[Row]:
    """Places of what the first picture shows, which others may lack."""
    label = shown.label
    urls = [one.address["image_url"] for one in shown.all]
    points = [[{"x": x, "y": y} for x, y in one.scene.percent(label)] for one in shown.all]
    return [{"image_urls": urls, "labels": [label] * len(urls), "points": points}]


def choices(shown: Shown) -> list[Row]:
    """Questions about all pictures with options, whose right one is the last."""
    files = [one.file for one in shown.all]
    other = "stone" if shown.scene.word != "stone" else "river"
    row = {"example_id": f"made-up-{shown.number}", "subset": "made_up", "images": files}
    asked = ["Which word is on the sign of the first picture?", "How many pictures are there?"]
    options = [[other, shown.scene.word], ["none", str(len(files))]]
    return [{**row, "mc_question": asked, "choices": options, "correct_choice_idx": [1, 1]}]


def choices_to_evaluate(shown: Shown) -> list[Row]:
    row = {
        "idx": str(shown.number),
        "task": "Counting",
        "image_relation": "Independent",
        "image_type": "Signs",
        "counterpart_idx": str(shown.number),
        "question": "What does the sign in " + "<image> " * len(shown.all) + "say first?",
        "options": ["river", shown.scene.word],
        "answer": "B",
    }
    return [{**row, "image_list": [one.image for one in shown.all]}]


TRAIN: dict[str, Callable[[Shown], list[Row]]] = {
    **{f"cosyn_{kind}" + "_exp" * (kind != "document"): explained for kind in COSYN},
    **{f"cosyn_multidoc_{kind}_exp": explained_pages for kind in COSYN_PAGES},
    "cosyn_point": places_asked,
    **{f"mantis_instruct_{name}_multi_only": choices for name in MANTIS},
    "pixmo_multi_image_qa_multi_only_max5": people_ask_of_several,
    "pixmo_multi_points": places_in_several,
    "pixmo_count_train": rows.counts,
    "tulu4_max_2304": rows.talks,
}
EVALUATED: dict[tuple[str, str], Callable[[Shown], list[Row]]] = {  # (data set, split)
    ("muir_bench", "test"): choices_to_evaluate,
    ("chart_qa_weighted", "validation"): rows.charts,
    **{
        (f"pixmo_docs_{kind}", "validation"): rows.documents
        for kind in ("charts", "tables", "other", "diagrams")
    },
}
