"""The measure of every strategy: the same training by torch alone in one process, without DeepSpeed and engine."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from deepspeed.utils import groups
from torch import Tensor

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.engine import optim
from molmo_ds.model import lora
from molmo_ds.model.molmo import Molmo, component
from molmo_ds.testing import synthetic

GROUPS = {name: value for name, value in vars(groups).items() if name.isupper() or name == "mpu"}
Run = tuple[list[float], dict[str, Tensor]]  # loss of each step, weights after the last one
Log = list[dict[str, float]]  # of each step: loss, accuracy, grad_norm/COMPONENT


def family(name: str) -> MolmoConfig:
    """The micro model with the decoder of a family."""
    model = synthetic.MODEL
    plain = replace(model.text, attention_bias=False)
    olmo = replace(plain, qk_norm=True, num_key_value_heads=4)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    texts = {
        "qwen2": model.text,
        "llama": replace(
            plain,
            model_type="llama",
            rope_scaling={**scaling, "original_max_position_embeddings": 16},
        ),
        "olmo": replace(plain, model_type="olmo", norm_type="layer", clip_qkv=4.0),
        "olmo2": replace(olmo, model_type="olmo2", norm_after=True),
        "olmoe": replace(
            olmo, model_type="olmoe", num_experts=4, num_experts_per_tok=2, intermediate_size=24
        ),
    }
    if name in texts:
        return replace(model, text=texts[name])
    return molmo2(name)


def molmo2(name: str) -> MolmoConfig:
    """The micro model in Molmo2's shape: `q3` like 8B, `o3` like O-7B with frames that see themselves only."""
    model = synthetic.MODEL
    text = replace(
        model.text,
        additional_vocab_size=16,
        attention_bias=False,
        qk_norm=True,
        max_position_embeddings=256,
    )
    q3 = replace(
        text,
        model_type="qwen3",
        head_dim=12,
        qk_norm_per_head=True,
        image_attention="image_tokens",
    )
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
    o3 = replace(
        text,
        model_type="olmo3",
        norm_after=True,
        num_key_value_heads=4,
        rope_scaling=yarn,
        rope_scaling_layers=(1,),
        image_attention="within_image",
    )
    return replace(
        model,
        family="molmo2",
        text={"q3": q3, "o3": o3}[name],
        vision=replace(model.vision, model_type="siglip", feature_layers=(-1, -2)),
        connector=replace(model.connector, padding_embed="none", pooling_mask=True),
        images=replace(model.images, resize="siglip", legacy_image_mask=False),
    )


def fresh_groups() -> None:
    """Forget the groups of ranks in DeepSpeed's globals: one process can hold the next strategy."""
    vars(groups).update({name: copy.copy(value) for name, value in GROUPS.items()})


def made_up(config: RunConfig) -> Callable[[int], list[Batch]]:
    """The sequences of a step of synthetic.py, each a batch of its own."""
    return lambda step: [
        synthetic.sequence_of(config, step, lane) for lane in range(config.global_batch)
    ]


def plain(
    config: RunConfig,
    rounding: float = 0.0,
    too_large: float = 0.0,
    lanes: Callable[[int], list[Batch]] | None = None,
) -> tuple[list[float], list[dict[str, float]], dict[str, Tensor]]:
    """Losses, gradient norms by component, and weights of `plain_log` over max_steps steps."""
    log, weights = plain_log(
        config, lanes or made_up(config), config.max_steps, rounding, too_large
    )
    losses = [values["loss"] for values in log]
    norms = [{part: values[f"grad_norm/{part}"] for part in optim.COMPONENTS} for values in log]
    return losses, norms, weights


def plain_log(
    config: RunConfig,
    lanes: Callable[[int], list[Batch]],
    steps: int,
    rounding: float = 0.0,
    too_large: float = 0.0,
) -> tuple[Log, dict[str, Tensor]]:
    """Train one sequence after the other; the loss of a step is (sum w ce + sum w z) / sum w of all its sequences.

    Args:
        lanes: the sequences of a step (from 1), each a batch of its own.
        rounding: relative error of the first weights.
        too_large: relative error of the gradients.
    """
    model = first_model(config, rounding)
    stepper = optim.build_optimizer(optim.parameter_groups(model, config.optim), config.optim)
    log = []
    for step in range(1, steps + 1):
        values = backward(model, lanes(step), 1 + too_large)
        for part in optim.COMPONENTS:
            named = model.named_parameters()
            grads = [p.grad for name, p in named if component(name) == part and p.grad is not None]
            norm = math.sqrt(sum(float((grad.double() ** 2).sum()) for grad in grads))
            values[f"grad_norm/{part}"] = norm
            if grads and config.optim.max_grad_norm:
                torch._foreach_mul_(grads, min(1.0, config.optim.max_grad_norm / (norm + 1e-6)))
        for group in stepper.param_groups:
            group["lr"] = optim.learning_rate(
                config.optim, group["component"], step, config.max_steps, "matrices" in group
            )
        stepper.step()
        stepper.zero_grad()
        log.append(values)
    return log, {name: parameter.detach() for name, parameter in model.named_parameters()}


def first_model(config: RunConfig, rounding: float) -> Molmo:
    """The network with its first weights, times 1 + rounding * noise."""
    model = Molmo(config.model, config.optim.z_loss)
    lora.adapt(model, config.lora)
    model.reset_parameters(config.seed)
    noise = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        still = getattr(config.optim, component(name)).freeze or name == "embed.embedding"
        parameter.requires_grad_(not still and not lora.is_base(name, config.lora))
        if rounding:
            parameter.data *= 1 + rounding * torch.randn(parameter.shape, generator=noise)
    return model


def backward(model: Molmo, sequences: list[Batch], scale: float) -> dict[str, float]:
    """Add up `scale` times the gradients of the step's loss; loss and accuracy."""
    total = sum(float(batch.loss_weights.double().sum()) for batch in sequences) or math.inf
    values = {"loss": 0.0, "accuracy": 0.0}
    for batch in sequences:
        ce, z, accuracy = model(batch)
        ((ce + z) * (scale / total)).backward()
        values["loss"] += float((ce + z).detach()) / total
        values["accuracy"] += float(accuracy.detach()) / total
    return values


def difference(ours: Run, reference: Run) -> tuple[float, float]:
    """Largest |loss difference| and largest relative difference of a weight tensor.

    A tensor's difference is divided by its norm, but at least by that of a tensor of its size drawn with deviation
    0.02 (biases start at zero). Biases of keys are left out: softmax does not see them, so their exact gradient is zero
    and Adam turns its rounding into steps of full length.
    """
    weights = 0.0
    for name, right in reference[1].items():
        if name.endswith("k_proj.bias"):
            continue
        right = right.double()
        norm = max(float(right.norm()), 0.02 * math.sqrt(right.numel()))
        far = float((ours[1][name].double() - right).norm())
        weights = max(weights, far / norm)
    return max(abs(a - b) for a, b in zip(ours[0], reference[0], strict=True)), weights
