"""Documents of the page in full: the picture, its crops, and every branch, token by token."""

import dataclasses
import html
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from molmo_ds.architecture import PIXEL_STATISTICS
from molmo_ds.batch import Batch, last_tokens
from molmo_ds.data.decode import load_image
from molmo_ds.data.order.loader import Mixture, Sequence
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.data.sample.pictures.images import ImageProcessor
from molmo_ds.data.sample.record import is_video
from molmo_ds.data.show.film import film_strip
from molmo_ds.data.show.pictures import HUES, img


@dataclasses.dataclass(frozen=True)
class Page:
    """Values that the parts of the page share."""

    mixture: Mixture
    drawn: list[Sequence]
    documents: int  # to show in full


def crop_documents(row: Batch) -> list[int]:
    """The document, from 0, of each crop's tokens."""
    if not len(row.images):
        return []
    tokens = last_tokens(row).clamp(min=0)
    return (row.document_ids[0][tokens] - 1).tolist()


def documents(page: Page) -> Iterator[str]:
    """Documents in full: half of them those with the most branches, the others as they come."""
    found = []
    for sequence in page.drawn:
        for number in range(1, len(sequence.references) + 1):
            mine = sequence.row.document_ids[0] == number
            found.append(
                (-int(sequence.row.branch_ids[0][mine].max()), len(found), sequence, number)
            )
    trees = sorted(found, key=lambda entry: entry[:2])[: page.documents // 2]
    shown = {entry[1] for entry in trees}
    others = [entry for entry in found if entry[1] not in shown][: page.documents - len(trees)]
    for _, _, sequence, number in sorted(trees + others, key=lambda entry: entry[1]):
        source, sample, epoch = sequence.references[number - 1]
        yield document(page, sequence, number, f"{source} sample {sample}, epoch {epoch}")


def document(page: Page, sequence: Sequence, number: int, where: str) -> str:
    """One document: picture, crops, branches."""
    row = sequence.row
    name, sample, _ = sequence.references[number - 1]
    source = page.mixture.names.index(name)
    builder = page.mixture.builders[source]
    shards = page.mixture.sets[source]
    record = shards.read(sample)
    mine = (row.document_ids[0] == number).nonzero()[:, 0]
    crops = [i for i, owner in enumerate(crop_documents(row)) if owner == number - 1]
    pictures = [film_strip(record, builder)] if is_video(record) else []
    for size, data in () if pictures else zip(record["sizes"], record["pixels"]):
        if 0 not in size:
            layout = builder.images.layout(*size, several=len(record["sizes"]) > 1)
            columns = layout.tiling[1] if layout.tiling else 1
            own = crops[: layout.crops]
            crops = crops[layout.crops :]
            tiling = "x".join(map(str, layout.tiling)) if layout.tiling else "one crop"
            thumbs = "".join(crop(row, i, builder) for i in own)
            caption = f"<figcaption>{size[0]} x {size[1]} &rarr; {tiling}</figcaption>"
            tiles = f'<div class="tiles" style="--c:{columns}">{thumbs}</div>'
            pictures.append(
                f'<div class="picture"><figure>{photo(data)}{caption}</figure>{tiles}</div>'
            )
    return (
        f'<article style="--h:{HUES[(number - 1) % len(HUES)]}"><h3>{html.escape(record["__key__"])}'
        f"<small>{html.escape(where)} &middot; {len(mine)} tokens</small></h3>{''.join(pictures)}"
        f"{''.join(branches(row, mine, builder))}</article>"
    )


def photo(data: bytes) -> str:
    """A picture as training sees it, made smaller."""
    upright = Image.fromarray(load_image(data))
    upright.thumbnail((360, 360))
    return img(np.asarray(upright), "JPEG")


def crop(row: Batch, index: int, builder: SampleBuilder) -> str:
    """A crop as the tower gets it, dimmed where its patches are used from a neighbour."""
    pixels = as_bytes(row.images[index], builder.images)
    patches = row.windows[row.image_positions >= 0].flatten()
    used = torch.zeros(row.image_masks.shape).flatten()
    used[patches[patches >= 0]] = 1
    used = used.view(row.image_masks.shape)[index]
    side = round(len(used) ** 0.5)
    grid = rearrange(used, "(row column) -> 1 1 row column", row=side)
    shade = rearrange(
        torch.nn.functional.interpolate(grid, pixels.shape[:2]),
        "1 1 height width -> height width 1",
    )
    small = Image.fromarray((pixels * (0.4 + 0.6 * shade)).byte().numpy())
    small.thumbnail((150, 150))
    return img(np.asarray(small), "JPEG")


def as_bytes(crop: torch.Tensor, images: ImageProcessor) -> torch.Tensor:
    """uint8 [S, S, 3] of a crop, which in the exact mode is normalised float32 [P, p * p * 3]."""
    if crop.ndim == 3:
        return crop
    mean, deviation = (torch.tensor(values) for values in PIXEL_STATISTICS[images.config.resize])
    side = images.geometry.side
    patch = images.geometry.patch_size
    crop = crop * deviation.repeat(patch * patch) + mean.repeat(patch * patch)
    pixels = rearrange(
        crop, "(row column) (y x colour) -> (row y) (column x) colour", row=side, y=patch, colour=3
    )
    return (pixels.clamp(0, 1) * 255).round().byte()


def branches(row: Batch, mine: torch.Tensor, builder: SampleBuilder) -> Iterator[str]:
    """The prefix and each branch as boxes of tokens; a branch ends with the label of its last token."""
    ids, labels, weights = (
        getattr(row, name)[0][mine] for name in ("input_ids", "labels", "loss_weights")
    )
    branch = row.branch_ids[0][mine]
    heaviest = max(float(row.loss_weights.max()), 1e-9)
    positions = row.position_ids[0][mine]
    for number in branch.unique().tolist():
        inside = (branch == number).nonzero()[:, 0].tolist()
        cells = []
        before = inside[0] - 1 if number == 1 else None
        shown = [
            (ids[i].item(), before if k == 0 else i - 1, positions[i].item())
            for k, i in enumerate(inside)
        ]
        if number:
            last = inside[-1]
            shown.append((labels[last].item(), last, positions[last].item() + 1))
        for is_image, group in itertools.groupby(
            shown, lambda token: token[0] >= builder.tokenizer.vocab_size
        ):
            tokens = list(group)
            if is_image:
                cells.append(f'<b class="image">{len(tokens)} picture tokens</b>')
                continue
            for token, predictor, position in tokens:
                weight = float(weights[predictor]) if predictor is not None else 0.0
                text = (
                    html.escape(builder.tokenizer.name(token))
                    .replace(" ", "&nbsp;")
                    .replace("\n", "&#8629;")
                )
                title = f"id {token}, position {position}, weight {weight:.3f}"
                style = f' style="--w:{weight / heaviest:.2f}"' if weight else ""
                cells.append(
                    f'<s title="{title}"{" class=on" if weight else ""}{style}>{text or "&middot;"}</s>'
                )
        name = f"branch {number}" if number else "shared"
        total = sum(float(weights[predictor]) for _, predictor, _ in shown if predictor is not None)
        weight = f"weight {total:.1f}" if number else f"{len(inside)} tokens"
        yield f'<div class="branch"><label>{name}<br><small>{weight}</small></label><p>{"".join(cells)}</p></div>'
