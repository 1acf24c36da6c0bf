"""Which tokens of a Molmo2 or HeMolmo sample belong to pictures, and which of them see each other.

Source: allenai/molmo2 at f3cb108, olmo/models/molmo (bi_directional_attn); facts were checked by its numbers.
"""

import torch
from torch import Tensor

# special tokens, counted from vocab_size: im_start, im_end, im_patch, im_col, low_res_im_start, im_low, frame_start,
# frame_end; time stamps and "Image 2" between them are text
VISUAL = {"molmo2": (0, 1, 2, 3, 4, 6, 7, 8), "hemolmo": (0, 1, 2, 3, 5)}
# low_res_im_start begins a picture, frame_start a frame; of HeMolmo im_start begins each resolution
STARTS = {"molmo2": (4, 7), "hemolmo": (0,)}


def image_ids(
    input_ids: Tensor,
    vocab_size: int,
    attention: str,
    family: str = "molmo2",
) -> Tensor:
    """int32 [t] for the int64 [t] tokens of one sample: 0 = text or seen in order, equal = they see each other.

    Args:
        attention: `text.image_attention`.
    """
    if attention == "causal":
        return torch.zeros_like(input_ids, dtype=torch.int32)
    special = input_ids - vocab_size
    of_pictures = torch.tensor(VISUAL[family])
    visual = torch.isin(special, of_pictures)
    if attention == "image_tokens":
        return visual.int()
    starts = torch.tensor(STARTS[family])
    begun = torch.isin(special, starts)
    picture = begun.cumsum(0) + 1
    return torch.where(visual, picture, 0).int()
