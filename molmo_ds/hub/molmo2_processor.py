"""The files of which transformers makes the processor of an exported Molmo2: tokenizer, template, pictures, video.

They are those of the released folders as transformers 5.23 names them (models/molmo2), which needs no code of ours.
Its frames of a video are other than those of training: see docs/guides/convert.md.
"""

import json
from pathlib import Path
from typing import Any

from molmo_ds.architecture import PIXEL_STATISTICS, MolmoConfig
from molmo_ds.data.sample.styles import CHOICE_STYLES, SPOKEN_STYLES
from molmo_ds.hub.words import ends_of, save_tokenizer, whole_tokenizer


def write(folder: Path, config: MolmoConfig, tokenizer: Path) -> None:
    """Write the tokenizer's files and the processor's; ValueError where the tokenizer has other ids."""
    ours, theirs = whole_tokenizer(config, tokenizer)
    save_tokenizer(theirs, chat_template(), folder)
    pictures = {
        "image_processor_type": "Molmo2ImageProcessor",
        "max_crops": config.images.max_crops,
        "overlap_margins": list(config.images.overlap_margins),
        **_pixels(config, config.connector.pooling_size),
    }
    frames = {
        "video_processor_type": "Molmo2VideoProcessor",
        "num_frames": config.video.max_frames,
        "max_fps": config.video.max_fps,
        "frame_sample_mode": config.video.frame_sample_mode,  # of Ai2's code; transformers' has one
        "do_sample_frames": True,
        **_pixels(config, config.video.pooling_size or config.connector.pooling_size),
    }
    layout = {
        "image_use_col_tokens": config.images.use_col_tokens,
        "use_single_crop_col_tokens": False,
        "use_single_crop_start_token": True,
        "video_use_col_tokens": False,
        "use_frame_special_tokens": True,
    }
    processor = {"processor_class": "Molmo2Processor"}
    files = {
        "preprocessor_config.json": pictures | processor,
        "video_preprocessor_config.json": frames | processor,
        "processor_config.json": layout | processor,
        "generation_config.json": ends_of(ours),
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def chat_template() -> str:
    """Jinja that writes a conversation as the released template does, without BOS: the processor adds it.

    Pictures and the video come first, wherever they stand, then subtitles, then the turns. `style` of a text is put
    before it where Molmo2 was trained so.
    """
    bare = json.dumps([*SPOKEN_STYLES, *CHOICE_STYLES])
    return (
        f"{{%- set bare = {bare} -%}}"
        "{%- set seen = namespace(images=0, videos=0, number=0) -%}"
        "{%- for message in messages if message['content'] is not string -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'].startswith('image') -%}{%- set seen.images = seen.images + 1 -%}"
        "{%- elif part['type'].startswith('video') -%}{%- set seen.videos = seen.videos + 1 -%}"
        "{%- endif -%}{%- endfor -%}{%- endfor -%}"
        "{%- if seen.videos > 1 or (seen.videos and seen.images) -%}"
        "{{ raise_exception('A conversation has pictures or one video.') }}{%- endif -%}"
        "{%- for number in range(seen.images) -%}"
        "{%- if seen.images > 1 -%}{{ 'Image ' ~ (number + 1) }}{%- endif -%}{{ '<|image|>' }}"
        "{%- endfor -%}"
        "{%- if seen.videos -%}{{ '<|video|>' }}{%- endif -%}"
        "{%- for message in messages if message['role'] == 'subtitle' -%}{{ message['content'] }}{%- endfor -%}"
        "{%- for message in messages if message['role'] != 'subtitle' -%}"
        "{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}"
        "{{ raise_exception('User and assistant take turns, and the user begins.') }}{%- endif -%}"
        "{%- if message['role'] == 'assistant' -%}{{ ' ' }}{%- endif -%}"
        "{{ '<|im_start|>' ~ message['role'] ~ '\n' }}"
        "{%- if message['content'] is string -%}{{ message['content'] }}"
        "{%- else -%}{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}"
        "{%- if not loop.first -%}{{ ' ' }}{%- endif -%}"
        "{%- if part['style'] and part['style'] not in bare -%}{{ part['style'] ~ ': ' }}{%- endif -%}"
        "{{ part['text'] }}{%- endfor -%}{%- endif -%}"
        "{{ '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )


def _pixels(config: MolmoConfig, pooling: int) -> dict[str, Any]:
    side = config.vision.image_size
    mean, deviation = PIXEL_STATISTICS[config.images.resize]
    return {
        "size": {"height": side, "width": side},
        "patch_size": config.vision.patch_size,
        "pooling_size": [pooling, pooling],
        "image_mean": list(mean),
        "image_std": list(deviation),
        "resample": 2,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
