"""A short run on the quickstart's data under one strategy, as the tests and tools/bench compare such runs."""

from pathlib import Path

from molmo_ds.config import COMPONENTS
from molmo_ds.testing.tables import ROOT

Cell = tuple[int, str, str, str]  # ranks, strategy, model, packing
MODELS = {"dense": [], "experts": ["model.text.num_experts=4", "model.text.num_experts_per_tok=2"]}
COMPARED = (  # keys of log.jsonl that are the same under every strategy
    "loss",
    "grad_norm/connector",
    "grad_norm/vision",
    "grad_norm/text",
    "tokens",
    "learnt_tokens",
    "crops",
)


def words(quickstart: Path, cell: Cell, out: Path, steps: int) -> list[str]:
    """The configuration file and settings of a cell: SGD, unclipped, micro-batches of one sequence.

    Args:
        quickstart: a folder of examples/quickstart.sh, for its shards and tokenizer.
    """
    _, strategy, model, packing = cell
    return [
        str(ROOT / "examples/digits/questions.yaml"),
        f"strategy={ROOT}/ds_configs/{strategy}.json",
        f"out={out}",
        f"data.sources.questions.path={quickstart / 'data/questions'}",
        f"data.tokenizer={quickstart / 'tokenizer'}",
        f"data.packing={packing}",
        "data.num_workers=0",
        "micro_batch=1",
        f"max_steps={steps}",
        "save_interval=1000",
        "optim.name=sgd",
        "optim.max_grad_norm=0",
        *MODELS[model],
        *(f"optim.{part}.{key}" for part in COMPONENTS for key in ("lr=0.05", "warmup_steps=2")),
    ]
