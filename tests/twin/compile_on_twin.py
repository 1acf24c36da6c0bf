"""Compiles training and evaluation for a GPU that is not there: python -m molmo_ds.testing.twin THIS 80|90 OUT.json.

A network of real head widths and few layers: ViT blocks and decoder layers with FlexAttention, forward and backward
under autocast, over ten batches of unlike crops and trees; then the same without gradients.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch
from molmo_ds.engine.compiled import compile_layers
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import dispatch
from molmo_ds.testing import synthetic
from molmo_ds.testing.twin import cubins

BATCHES = 10


def shape() -> MolmoConfig:
    """The micro model with heads of 64 numbers in the ViT and of 128 in the decoder."""
    text = replace(synthetic.MODEL.text, hidden_size=512, intermediate_size=1024)
    vision = replace(synthetic.MODEL.vision, hidden_size=128, intermediate_size=256)
    return replace(synthetic.MODEL, text=text, vision=vision)


def graphs() -> int:
    """How many Dynamo has made."""
    return counters["stats"]["unique_graphs"]


def main() -> None:
    """Compile, and write graphs after each batch, breaks, and every kernel's registers and stack."""
    architecture, out = int(sys.argv[1]), Path(sys.argv[2])
    cubins.install(architecture)
    model = Molmo(shape(), z_loss=1e-4).train()
    model.reset_parameters(0)
    model.to("cuda")
    compile_layers(model)
    batches: list[Batch] = [synthetic.sequence(step, step % 5) for step in range(BATCHES)]
    seen = {"crops": [len(batch.images) for batch in batches], "training": [], "evaluation": []}
    with dispatch.use(None), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        for batch in batches:
            ce, z, _ = model(batch.to("cuda"))
            (ce + z).backward()
            seen["training"].append(graphs())
            seen.setdefault("kernels after a batch", []).append(len(cubins.made))
        with torch.no_grad():
            for batch in batches:
                model(batch.to("cuda"))
                seen["evaluation"].append(graphs())
    seen["breaks"] = dict(counters["graph_break"])
    seen["launches"] = sum(cubins.launches.values())
    seen["cubins"] = [asdict(one) for one in cubins.made]
    out.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
