"""Fine-tunes an exported (or released) folder with transformers' Trainer, or with TRL's SFTTrainer, and saves it again.

    python with_transformers.py EXPORT ROWS.jsonl OUT [--lora] [--trl] [--epochs 1] [--lr 1e-5] [--batch 1]

A line of ROWS.jsonl is {"image": PATH, "question": TEXT, "answer": TEXT}; paths are relative to the file. Needs torch,
transformers, accelerate, datasets and Pillow; --lora needs peft, --trl needs trl; molmo_ds is not needed. It trains in
one process, or under `accelerate launch`. molmo_ds.train packs and trains under every strategy, which this does not.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, Trainer, TrainingArguments

IGNORED = -100  # label of what is not learnt
BLOCKS = ("model.layers.", "model.transformer.blocks.")  # of the decoder, by the names of exports


class Collator:
    """Rows to a batch: prompts as the processor makes them, answers after them, of which alone the loss is taken."""

    def __init__(self, processor, root: Path):
        self.processor = processor
        self.root = root

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels [B, T]; the pictures' tensors as the processor returns them."""
        pictures = [[Image.open(self.root / row["image"]).convert("RGB")] for row in rows]
        questions = [row["question"] for row in rows]
        batch = dict(self.processor(text=questions, images=pictures, return_tensors="pt"))
        tokenizer = self.processor.tokenizer
        answers = [tokenizer.encode(" " + row["answer"]) for row in rows]
        answers = [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in answers]
        ids = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)
        learnt = torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(answer) for answer in answers], batch_first=True
        )
        ignored = torch.full_like(batch["input_ids"], IGNORED)
        labels = torch.cat([ignored, ids.masked_fill(learnt == 0, IGNORED)], dim=1)
        return batch | {
            "input_ids": torch.cat([batch["input_ids"], ids], dim=1),
            "attention_mask": torch.cat([batch["attention_mask"], learnt], dim=1),
            "labels": labels,
        }


def main(arguments: list[str] | None = None) -> list[dict]:
    """Train, save OUT, and return what the Trainer logged."""
    given = read_arguments(arguments)
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(given.folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(given.folder, trust_remote_code=True, dtype="auto")
    if given.lora:
        from peft import LoraConfig, get_peft_model

        targets = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith(BLOCKS)
        ]
        adapters = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=targets)
        model = get_peft_model(model, adapters)
    rows = load_dataset("json", data_files=str(given.rows), split="train")
    trainer = trainer_of(given, model, processor, rows)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if given.lora:
        model = model.merge_and_unload()
    model.save_pretrained(given.out)
    processor.save_pretrained(given.out)
    return trainer.state.log_history


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("rows", type=Path)
    parser.add_argument("out")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--trl", action="store_true")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--batch", type=int, default=1)
    return parser.parse_args(arguments)


def trainer_of(given: argparse.Namespace, model, processor, rows) -> Trainer:
    """The Trainer, or TRL's, which then leaves the rows as they are."""
    settings = {
        "output_dir": f"{given.out}/trainer",
        "num_train_epochs": given.epochs,
        "per_device_train_batch_size": given.batch,
        "learning_rate": given.lr,
        "remove_unused_columns": False,  # the collator reads them
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": model.supports_gradient_checkpointing,  # TRL would ask for it always
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    collator = Collator(processor, given.rows.parent)
    if not given.trl:
        args = TrainingArguments(**settings)
        return Trainer(model, args, collator, rows, processing_class=processor)
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(**settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(model, args, collator, rows, processing_class=processor)


if __name__ == "__main__":
    main()
