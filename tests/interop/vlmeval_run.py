"""VLMEvalKit's own run.py on made-up rows, by three kinds of model; started by test_kits_themselves.py.

    python vlmeval_run.py KIT WORDS.json SAID.json

WORDS.json: {"export", "weights", "server", "tables": {data set: {column: values}}, "out"}. The command lines are those
of docs/guides/kits.md and, for the export, a file of settings as run.py describes it.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from vlmeval_calls import TOKENS, on_the_cpu, prepare


def main(kit: str, words: str, out: str) -> None:
    """Run it for each model."""
    given = json.loads(Path(words).read_text())
    prepare(kit, given["out"])
    import pandas
    import vlmeval.dataset
    from vlmeval.smp import load as read

    from molmo_ds.eval.kits.vlmevalkit import register

    kinds = {}
    for name, table in given["tables"].items():
        pandas.DataFrame(table).to_csv(Path(given["out"]) / f"{name}.tsv", sep="\t", index=False)
        kind = next(
            kind for kind in vlmeval.dataset.DATASET_CLASSES if name in kind.supported_datasets()
        )
        kind.DATASET_MD5[name] = None  # of the true file
        kinds[name] = {"class": kind.__name__, "dataset": name}
    on_the_cpu()
    register("weights", given["weights"], max_new_tokens=TOKENS)
    models = {"export": {"class": "molmo", "model_path": given["export"]}}
    config = Path(given["out"]) / "config.json"
    config.write_text(json.dumps({"model": models, "data": kinds}))
    run = importlib.import_module("run")
    names = list(kinds)
    asked = ["--base-url", f"{given['server']}/v1", "--max-tokens", str(TOKENS), "--retry", "1"]
    said: dict[str, Any] = {}
    for model, more in (
        ("export", ["--config", str(config)]),
        ("weights", ["--data", *names, "--model", "weights"]),
        ("molmo", ["--data", *names, "--model", "molmo", *asked, "--api-nproc", "1"]),
    ):
        sys.argv = ["run.py", *more, "--judge", "exact_matching", "--work-dir", given["out"]]
        run.main()
        (folder,) = (path for path in (Path(given["out"]) / model).iterdir() if path.is_dir())
        said[model] = {"status": json.loads((folder / "status.json").read_text())}
        for name in names:
            rows = read(str(folder / f"{model}_{name}.tsv"))
            said[model][name] = list(map(str, rows["prediction"]))
    Path(out).write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
