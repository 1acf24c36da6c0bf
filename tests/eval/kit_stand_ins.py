"""VLMEvalKit and lmms-eval as far as they touch a model: the calls that were seen when the kits themselves ran.

VLMEvalKit e8e78f0 (vlmeval/inference.py: infer_data; vlmeval/vlm/base.py: BaseModel) and lmms-eval 0.7.3
(lmms_eval/api/instance.py, api/model.py, evaluator.py). tests/interop/test_kits_themselves.py runs the kits.
"""

import pickle
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

supported_VLM: dict[str, Any] = {}


class BaseModel:
    """What a model of VLMEvalKit inherits."""

    allowed_types = ("text", "image", "video")

    def set_dump_image(self, dump: Any) -> None:
        """Where the pictures of a row are written."""
        self.dump = dump

    def dump_image(self, line: Any, dataset: str | None) -> list[str]:
        """The files of a row's pictures."""
        return self.dump(line)

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The kit looks at each part, then asks."""
        for part in message:
            assert part["type"] in self.allowed_types
            assert Path(part["value"]).is_file() == (part["type"] != "text")
        return self.generate_inner(message, dataset)


def infer_data(model: str, model_name: str, work_dir: str, dataset: Any, out_file: str) -> None:
    """Ask every row, and pickle the answers by index."""
    made = supported_VLM[model_name]()
    assert not getattr(made, "is_api", False)
    made.set_dump_image(dataset.dump_image)
    answers = {}
    for number in range(len(dataset)):
        line = dataset.data.iloc[number]
        own = made.use_custom_prompt(dataset.dataset_name)
        prompt = (
            made.build_prompt(line, dataset=dataset.dataset_name)
            if own
            else dataset.build_prompt(line)
        )
        answers[line["index"]] = made.generate(message=prompt, dataset=dataset.dataset_name)
    Path(out_file).write_bytes(pickle.dumps(answers))


def load(file: str) -> Any:
    """What was pickled."""
    return pickle.loads(Path(file).read_bytes())


@dataclass
class TokenCounts:
    """Of an answer, for lmms-eval."""

    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    """An answer for lmms-eval."""

    text: str
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    """A question of lmms-eval."""

    arguments: tuple


class lmms:
    """What a model of lmms-eval inherits."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    @classmethod
    def create_from_arg_string(cls, arguments: str, more: dict[str, Any]) -> Any:
        """From `NAME=VALUE,...` and the command line's own options that are not None."""
        pairs = dict(pair.split("=", 1) for pair in arguments.split(","))
        return cls(**pairs, **{name: value for name, value in more.items() if value is not None})


def modules() -> dict[str, types.ModuleType]:
    """What `import vlmeval...` and `import lmms_eval...` find."""
    parts = {
        "vlmeval": {},
        "vlmeval.config": {"supported_VLM": supported_VLM},
        "vlmeval.vlm": {},
        "vlmeval.vlm.base": {"BaseModel": BaseModel},
        "vlmeval.inference": {"infer_data": infer_data},
        "vlmeval.smp": {"load": load},
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": Instance,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": lmms},
    }
    found = {}
    for name, holds in parts.items():
        found[name] = types.ModuleType(name)
        vars(found[name]).update(holds)
    return found
