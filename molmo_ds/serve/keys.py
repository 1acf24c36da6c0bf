"""Keys of a request that are not known here: ignored, unless they would change an answer or are a slip."""

import difflib
from itertools import islice
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

MOST = 200  # keys of an object that are looked at: comparing names costs time
ALIKE = 0.8  # of the characters of two names, from which on one is taken for a slip of the other
# a key of vLLM's that is like one here and changes no answer
OTHERS = ("add_special_tokens",)


def _only(neutral: Any) -> AfterValidator:
    """Of a key that changes answers and is not known here: only the value that changes nothing is taken."""

    def check(value: Any) -> Any:
        if value is not None and value != neutral:
            raise ValueError(f"is not known here; must be {neutral!r} or left out")
        return value

    return AfterValidator(check)


class Read(BaseModel):
    """Keys that are not known are ignored, as clients send many, but for those that are a slip of the pen."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _no_slips(cls, given: Any) -> Any:
        for key in islice(given, MOST) if isinstance(given, dict) else ():
            if key not in cls.model_fields and key not in OTHERS:
                near = difflib.get_close_matches(key, cls.model_fields, n=1, cutoff=ALIKE)
                if near:
                    raise ValueError(f"has the unknown key {key[:40]!r}; write {near[0]!r}")
        return given


class Known(Read):
    """Keys of OpenAI's and of vLLM's that would change an answer: only the value that changes nothing is taken."""

    frequency_penalty: Annotated[Any, _only(0)] = None
    presence_penalty: Annotated[Any, _only(0)] = None
    repetition_penalty: Annotated[Any, _only(1)] = None
    min_p: Annotated[Any, _only(0)] = None
    min_tokens: Annotated[Any, _only(0)] = None
    logit_bias: Annotated[Any, _only({})] = None
    bad_words: Annotated[Any, _only([])] = None
    stop_token_ids: Annotated[Any, _only([])] = None
    ignore_eos: Annotated[Any, _only(False)] = None
    use_beam_search: Annotated[Any, _only(False)] = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    structured_outputs: Annotated[Any, _only({})] = None
    tools: Annotated[Any, _only([])] = None
    functions: Annotated[Any, _only([])] = None
    best_of: Annotated[Any, _only(1)] = None
    length_penalty: Annotated[Any, _only(1)] = None
    prompt_logprobs: Annotated[Any, _only(0)] = None
    allowed_token_ids: Annotated[Any, _only([])] = None
    echo: Annotated[Any, _only(False)] = None
    continue_final_message: Annotated[Any, _only(False)] = None
    skip_special_tokens: Annotated[Any, _only(True)] = None
    include_stop_str_in_output: Annotated[Any, _only(False)] = None
    guided_json: Annotated[Any, _only({})] = None
    guided_regex: Annotated[Any, _only("")] = None
    guided_choice: Annotated[Any, _only([])] = None
    guided_grammar: Annotated[Any, _only("")] = None
    chat_template: Annotated[Any, _only("")] = None
    mm_processor_kwargs: Annotated[Any, _only({})] = None
    modalities: Annotated[Any, _only(["text"])] = None
