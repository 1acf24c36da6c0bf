"""Megatron-Energon on folders of shards; started by test_shards_of_others.py with the Python of Energon's environment.

python energon_calls.py read FOLDER SAID.json      each sample of the part `train`
python energon_calls.py img2dataset LIST.csv OUT   columns url and caption, written as webdataset
"""

import json
import sys
from pathlib import Path


def read(folder: str, out: str) -> None:
    """What Energon hands to a task encoder."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        edataclass,
        get_loader,
        get_val_dataset,
        stateless,
    )

    @edataclass
    class Members(Sample):
        """A sample as it is."""

        members: dict[str, bytes]

    @stateless
    def cook(sample: dict) -> Members:
        members = {name: data for name, data in sample.items() if not name.startswith("__")}
        return Members(**basic_sample_keys(sample), members=members)

    class Encoder(DefaultTaskEncoder):
        """Decodes nothing."""

        cookers = [Cooker(cook)]
        decoder = None

    worker = WorkerConfig(rank=0, world_size=1, num_workers=0)
    samples = get_val_dataset(
        folder, split_part="train", worker_config=worker, batch_size=None, task_encoder=Encoder()
    )
    said = {
        sample.__key__: {
            name: json.loads(data) if name == "json" else len(data)
            for name, data in sample.members.items()
        }
        for sample in get_loader(samples)
    }
    Path(out).write_text(json.dumps(said))


def img2dataset(urls: str, out: str) -> None:
    """Fetch and write."""
    from img2dataset import download

    download(
        url_list=urls,
        output_folder=out,
        input_format="csv",
        caption_col="caption",
        output_format="webdataset",
        processes_count=1,
        thread_count=2,
        image_size=64,
    )


if __name__ == "__main__":
    {"read": read, "img2dataset": img2dataset}[sys.argv[1]](*sys.argv[2:])
