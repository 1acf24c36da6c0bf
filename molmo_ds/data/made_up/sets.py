"""The made-up sets that the recipes of each family read, and the prompts under which their tokenizer reads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from molmo_ds.config import PromptConfig
from molmo_ds.data.made_up import actions, asked_videos, rows, several, videos
from molmo_ds.data.sample.turns import TURN_END, TURN_START
from molmo_ds.data.sources import fixed_answers
from molmo_ds.data.sources.source import Row

Maker = Callable[..., list[Row]]  # of a Shown or a Filmed
Name = tuple[str, str]  # data set, split
END = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Sets:
    """What is written for the recipes of a family."""

    pictures: Mapping[Name, Maker]
    videos: Mapping[Name, Maker]
    prompts: tuple[PromptConfig, ...]  # of its stages
    special: tuple[str, ...] = (END,)  # tokens of the tokenizer, that of the end last


def _training(makers: Mapping[str, Maker]) -> dict[Name, Maker]:
    return {(name, "train"): make for name, make in makers.items()}


PICTURES = _training(several.TRAIN) | _training(rows.TRAIN) | several.EVALUATED | rows.EVALUATED
OF_MOLMO2 = (  # sets of the first Molmo's mixture
    *("pixmo_ask_model_anything", "pixmo_cap", "pixmo_cap_qa_as_user_qa"),
    *("pixmo_cap_with_transcripts", "pixmo_points_train", "pixmo_points_high_freq_train"),
    *("coco_2014_vqa_multi", "text_vqa", "okvqa", "chart_qa_weighted", "doc_qa", "info_qa"),
    *("ai2_diagram_v2_mix_transparent", "a_okvqa_mc", "a_okvqa_da", "science_qa_img"),
    *("tabwmp_da", "st_qa", "tally_qa", "dv_qa", "figure_qa", "plot_qa", "tulu4"),
)
_DOCUMENTS = ("charts", "other", "tables", "diagrams")
OF_HEMOLMO = (
    *(("pixmo_cap", split) for split in ("train", "validation")),
    *(("pixmo_transcript", split) for split in ("train", "validation")),
    *(("chart_qa_weighted", split) for split in ("train", "validation")),
    *(("doc_qa", split) for split in ("train", "validation")),
    ("chart_qa", "validation"),
    *((f"pixmo_docs_{kind}", split) for kind in _DOCUMENTS for split in ("train", "validation")),
)
_OF_STAGES = (
    PromptConfig(),
    PromptConfig(prompt_templates="none", message_format="none", system_prompt="style_and_length"),
)
_OF_MOLMO2 = (
    PromptConfig(
        prompt_templates="uber_model_v2",
        message_format="chat",
        system_prompt="demo_or_style_v2",
        pointing_format="html-v2",
    ),
    PromptConfig(
        prompt_templates="none",
        message_format="chat",
        system_prompt="style_and_length_v2",
        pointing_format="html-v1",
    ),
)
SETS = {
    "molmo": Sets(pictures=_training(rows.TRAIN) | rows.EVALUATED, videos={}, prompts=_OF_STAGES),
    "molmo2": Sets(
        pictures={
            **{(name, "train"): PICTURES[name, "train"] for name in OF_MOLMO2},
            **_training(several.TRAIN),
            (fixed_answers.NAME, "train"): actions.itself,
            ("muir_bench", "test"): several.choices_to_evaluate,
            ("chart_qa", "validation"): rows.charts,
        },
        videos=_training(videos.TRAIN | asked_videos.TRAIN | actions.TRAIN) | videos.EVALUATED,
        prompts=_OF_MOLMO2,
        special=(END, TURN_START, TURN_END),  # as Qwen3's
    ),
    "hemolmo": Sets(
        pictures={name: PICTURES[name] for name in OF_HEMOLMO}, videos={}, prompts=_OF_STAGES
    ),
}
