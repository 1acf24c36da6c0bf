"""What a run was given and does not read is said once; nothing is said of defaults, and of no recipe."""

from pathlib import Path

import pytest

from molmo_ds import settings, unread

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["optim.momentum=0.9"], "optim.momentum=0.9 (optim.name=muon alone has it)"),
        (["optim.name=muon", "optim.momentum=0.9"], ""),
        (["optim.name=sgd", "optim.momentum=0.9"], "optim.momentum=0.9"),
        (["optim.name=sgd", "optim.text.eps=1e-3"], "optim.text.eps=0.001 (optim.name=sgd"),
        (["optim.text.matrix_lr=0.1"], "optim.text.matrix_lr=0.1"),
        (["optim.grad_clip_warmup_factor=3"], "grad_clip_warmup_factor=3.0"),
        (["optim.grad_clip_warmup_factor=3", "optim.grad_clip_warmup_steps=9"], ""),
        (["optim.max_grad_norm=0", "optim.grad_clip_warmup_steps=9"], "clips nothing"),
        (["lora.rank=4"], "lora.rank=4 (lora.components names none)"),
        (["lora.rank=4", "lora.components=[text]"], ""),
        (["compile_mode=max-autotune-no-cudagraphs"], "(compile=true alone has it)"),
        (["wandb_group=x"], "wandb_group=x"),
        (["data.crop_weight=1"], "data.crop_weight=1.0"),
        (["data.crop_weight=1", "data.packing=knapsack"], ""),
        (["data.packing=to_max", "data.pool_size=3"], "data.pool_size=3"),
        (["data.num_workers=0", "data.prefetch_factor=3"], "data.prefetch_factor=3"),
        (
            ["data.sources.a.path=x", "data.sources.a.token_weight=2"]
            + ["data.sources.a.root_length=true"],
            "data.sources.a.root_length=True (its token_weight replaces both roots)",
        ),
        (
            ["optim.weight_decay=0.1", "optim.text.weight_decay=0", "optim.vision.freeze=true"]
            + ["optim.connector.weight_decay=0"],
            "optim.weight_decay=0.1 (every component has its own weight_decay)",
        ),
        (["optim.weight_decay=0.1", "optim.text.weight_decay=0"], ""),
        (["out=runs/x", "scratch=/tmp"], "scratch=/tmp (out is a local folder)"),
        (["out=s3://x/y", "scratch=/tmp"], ""),
        (["profile_steps=[9]", "stop_after=8"], "profile_steps=(9,) (stop_after=8 ends before)"),
        (["profile_steps=[9]", "stop_after=9"], ""),
        (
            ["evaluators.v.path=x", "evaluators.v.data_folder=y"],
            "evaluators.v.data_folder=y (a task alone has it)",
        ),
        (["evaluators.v.task=chart_qa", "evaluators.v.data_folder=y"], ""),
        (
            ["evaluators.v.sources.a.path=x", "evaluators.v.sources.a.rate=0.5"],
            "evaluators.v.sources.a.rate=0.5 (each sample is taken once)",
        ),
        (["evaluators.v.sources.a.path=x", "evaluators.v.sources.a.weight=2"], ""),
        ([], ""),
    ],
)
def test_what_is_not_read_is_said(given: list[str], said: str) -> None:
    found = unread.told(settings.load(None, given))
    assert len(found) == bool(said)
    assert said in "".join(found)


def test_no_recipe_has_a_setting_without_a_reader() -> None:
    recipes = [path for path in ROOT.glob("examples/*/*.yaml") if path.parent.name != "cluster"]
    assert len(recipes) > 25
    for path in recipes:
        assert unread.told(settings.load([str(path)], ["out=x"])) == [], path
