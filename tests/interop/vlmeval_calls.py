"""Made-up rows of TextVQA through VLMEvalKit, by three of its models; started by test_kits_themselves.py.

    python vlmeval_calls.py KIT WORDS.json SAID.json

KIT is a clone, which is on PYTHONPATH too. It wants dozens of packages for data sets and models that nothing here
touches: those that are missing are empty stand-ins, and its own class `molmo`, written for CUDA, is told `cpu`. Nothing
else of it is changed.
WORDS.json: {"export", "weights", "server", "rows": [[PNG in base64, question, answer]], "out"}.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from functools import partial
from pathlib import Path

from transformers.utils import is_torchvision_available

NAME = "TextVQA_VAL"
TOKENS = 4
ALSO = ("latex2sympy2_extended",)  # missing in a package that lmms-eval brings and the kit imports


class Names(type):
    """Classes that have a part of any name."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class Nothing(metaclass=Names):
    """Whatever a package that is not installed holds; as a decorator it leaves a function as it is."""

    def __init__(self, *words, **options):
        pass

    def __call__(self, function=None, *words, **options):
        return function

    def __bool__(self) -> bool:
        return False  # no text is a URL, nothing is available

    def __getattr__(self, name: str) -> type:
        return getattr(Nothing, name)


class Anything(types.ModuleType):
    """A package that is not installed: any name in it can be imported, called and inherited from."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        return getattr(Nothing, name)


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Found last: whatever the kit imports and nobody has."""

    def __init__(self, kit: str):
        self.kit = kit

    def find_spec(self, name, path=None, target=None):
        """Only for imports that the kit's own files make, and for parts of what is missing already."""
        known = name.partition(".")[0] in ALSO or isinstance(
            sys.modules.get(name.partition(".")[0]), Anything
        )
        asker = sys._getframe(1)
        while asker and "importlib" in asker.f_code.co_filename:
            asker = asker.f_back
        if known or (asker and asker.f_code.co_filename.startswith(self.kit)):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        """The stand-in."""
        return Anything(spec.name)

    def exec_module(self, module):
        """Nothing."""


def prepare(kit: str, out: str) -> None:
    """What must be so before the kit is imported; its data lies in `out`."""
    os.environ["LMUData"] = out  # noqa: SIM112
    os.environ["PRED_FORMAT"] = "tsv"  # a sheet takes no control characters
    is_torchvision_available()  # kept: transformers must not take the stand-in for it
    sys.meta_path.append(Missing(kit))


def on_the_cpu() -> type:
    """The kit's class `molmo`."""
    import vlmeval.vlm

    own = sys.modules[vlmeval.vlm.molmo.__module__]
    exec(Path(own.__file__).read_text().replace("cuda", "cpu"), own.__dict__)
    vlmeval.vlm.molmo = own.molmo
    return own.molmo


def main(kit: str, words: str, out: str) -> None:
    """Ask and score with each model."""
    given = json.loads(Path(words).read_text())
    prepare(kit, given["out"])
    import pandas
    from vlmeval.api import OpenAIWrapper
    from vlmeval.config import supported_VLM
    from vlmeval.dataset import build_dataset
    from vlmeval.dataset.image_vqa import ImageVQADataset
    from vlmeval.inference import infer_data_job
    from vlmeval.smp import load as read

    from molmo_ds.eval.kits.vlmevalkit import register

    columns = ["image", "question", "answer"]
    table = pandas.DataFrame(given["rows"], columns=columns)
    table.insert(0, "index", range(len(table)))
    table.to_csv(Path(given["out"]) / f"{NAME}.tsv", sep="\t", index=False)
    ImageVQADataset.DATASET_MD5[NAME] = None  # of the true file

    supported_VLM["export"] = partial(on_the_cpu(), model_path=given["export"])
    register("weights", given["weights"], max_new_tokens=TOKENS)
    api = {"model": "molmo", "key": "none", "max_tokens": TOKENS, "retry": 1}
    url = f"{given['server']}/v1/chat/completions"
    supported_VLM["server"] = partial(OpenAIWrapper, api_base=url, img_detail="high", **api)

    said = {}
    for name in ("export", "weights", "server"):
        folder = Path(given["out"]) / name
        folder.mkdir()
        data = build_dataset(NAME)  # a job takes the pictures out of it
        infer_data_job(name, str(folder), name, data, api_nproc=1)
        (file,) = folder.glob(f"{name}_{NAME}.*")
        answers = list(map(str, read(str(file))["prediction"]))
        figure = data.evaluate(str(file))
        said[name] = {"answers": answers, "figure": float(figure["Overall"].iloc[0])}
    Path(out).write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
