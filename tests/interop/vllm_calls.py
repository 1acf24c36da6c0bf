"""Answers of vLLM about an exported folder; started by test_vllm.py with the Python of vLLM's environment.

    python vllm_calls.py FOLDER TALKS.json SAID.json

TALKS.json is a list of conversations in OpenAI's form; SAID.json receives the ids of the prompt and of the answer, and
the answer's log-probabilities.
"""

import json
import sys
from pathlib import Path

TOKENS = 12


def main(folder: str, talks: str, out: str) -> None:
    """Ask each conversation, greedily."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=folder,
        trust_remote_code=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=2048,
        max_num_seqs=2,
        skip_mm_profiling=True,
        limit_mm_per_prompt={"image": 2},
    )
    params = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=0, ignore_eos=True)
    said = []
    for talk in json.loads(Path(talks).read_text()):
        (found,) = llm.chat(talk, params, use_tqdm=False)  # a bar that is off divides by 0
        (answer,) = found.outputs
        ids = list(answer.token_ids)
        logprobs = [step[token].logprob for step, token in zip(answer.logprobs, ids)]
        said.append({"prompt": list(found.prompt_token_ids), "answer": ids, "logprobs": logprobs})
    Path(out).write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
