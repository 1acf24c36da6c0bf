"""Which tokens of a Molmo2 sample belong to pictures, and which of them see each other.

Source: allenai/molmo2 at f3cb108, olmo/models/molmo (bi_directional_attn); facts were checked by its numbers.
"""

import torch
from torch import Tensor

# special tokens, counted from vocab_size: im_start, im_end, im_patch, im_col, low_res_im_start, im_low, frame_start,
# frame_end; time stamps and "Image 2" between them are text
VISUAL = (0, 1, 2, 3, 4, 6, 7, 8)
STARTS = (4, 7)  # low_res_im_start begins a picture, frame_start a frame


def image_ids(input_ids: Tensor, vocab_size: int, attention: str) -> Tensor:
    """int32 [t] for the int64 [t] tokens of one sample: 0 = text or seen in order, equal = they see each other.

    Args:
        attention: `text.image_attention`.
    """
    special = input_ids - vocab_size
    visual = torch.isin(special, torch.tensor(VISUAL))
    if attention == "causal":
        return torch.zeros_like(input_ids, dtype=torch.int32)
    if attention == "image_tokens":
        return visual.int()
    picture = torch.isin(special, torch.tensor(STARTS)).cumsum(0)
    return torch.where(visual, picture + 1, 0).int()
