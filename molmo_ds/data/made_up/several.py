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
    row = {
        "id": str(shown.number),
        "image": shown.image,
        "qa_pairs": _pairs(shown),
    }
    return [row]


def explained_pages(shown: Shown) -> list[Row]:
    """Several drawings, asked about the first."""
    images = [one.image for one in shown.all]
    row = {
        "id": str(shown.number),
        "metadata": {"num_images": len(images)},
        "images": images,
        "qa_pairs": _pairs(shown),
    }
    return [row]


def _pairs(shown: Shown) -> dict[str, list[str]]:
    questions, answers = zip(*shown.asked(3))
    seen = shown.scene.caption()
    explanations = [f"{seen} So the answer is {answer}." for answer in answers]
    return {
        "question": list(questions),
        "explanation": explanations,
        "answer": list(answers),
    }


def places_asked(shown: Shown) -> list[Row]:
    labels = list(shown.scene.places())
    row = {
        "id": str(shown.number),
        "image": shown.image,
        "names": labels,
        "answer_points": [_points(shown, label) for label in labels],
        "questions": [f"Point to each {label}." for label in labels],
    }
    return [row]


def _points(shown: Shown, label: str) -> list[dict[str, float]]:
    return [{"x": x, "y": y} for x, y in shown.scene.percent(label)]


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
    row = {
        "image_urls": urls,
        "labels": [label] * len(urls),
        "points": [_points(one, label) for one in shown.all],
    }
    return [row]


def choices(shown: Shown) -> list[Row]:
    """Questions about all pictures with options, whose right one is the last."""
    files = [one.file for one in shown.all]
    other = "stone" if shown.scene.word != "stone" else "river"
    word = ("Which word is on the sign of the first picture?", [other, shown.scene.word])
    count = ("How many pictures are there?", ["none", str(len(files))])
    questions, options = zip(word, count)
    row = {
        "example_id": f"made-up-{shown.number}",
        "subset": "made_up",
        "images": files,
        "mc_question": list(questions),
        "choices": list(options),
        "correct_choice_idx": [1, 1],
    }
    return [row]


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
