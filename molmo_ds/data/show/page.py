"""A page with the pictures, crops, tokens, loss weights, branches and packing of real batches of one data set."""

import html
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.data.order import losses
from molmo_ds.data.order.loader import Sequence
from molmo_ds.data.show.documents import Page, crop_documents, documents
from molmo_ds.data.show.pictures import HUES, colour, img

STYLE = (Path(__file__).parent / "page.css").read_text()
MAP = 300  # side of an attention map, pixels
PACKING = """<p class="lead">One row per sequence. Each colour is a document: <i class="key image"></i> picture tokens,
<i class="key prompt"></i> text that is given, <i class="key learnt"></i> text that is learnt, <i class="key empty"></i>
padding. Below each row: the crops that travel with it.</p>"""
MAPS = """<p class="lead">Rows are tokens that look, columns tokens that are seen. Documents do not see each other;
branches of one document share its picture (pale) and do not see each other.</p>"""
DOCUMENTS = """<p class="lead">The picture with the tiling that was chosen; its crops, the global view on top,
dimmed where a neighbour shows the same patches; then every branch, token by token. Shaded tokens are learnt, the darker
the more they weigh (hold the pointer over one).</p>"""


def render(page: Page, config: RunConfig, dataset: str) -> str:
    """The whole page."""
    shards = page.mixture.sets[0]
    name = html.escape(Path(dataset.rstrip("/")).name)
    about = f"{html.escape(dataset)} &middot; {len(shards):,} samples in {len(shards.shards)} shards &middot; "
    about += f"preset {html.escape(config.preset)}, packing {config.data.packing}, pool of {config.data.pool_size}"
    parts = [
        f"<header><h1>{name}</h1><p>{about}</p></header>",
        figures(page, config),
        f"<section><h2>Packing</h2>{PACKING}",
        *(packing_row(sequence, config) for sequence in page.drawn),
        f'</section><section><h2>Who sees whom</h2>{MAPS}<div class="maps">',
        *attention_maps(page),
        f"</div></section><section><h2>Documents</h2>{DOCUMENTS}",
        *documents(page),
        "</section>",
    ]
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def figures(page: Page, config: RunConfig) -> str:
    """The numbers at the top."""
    rows = [sequence.row for sequence in page.drawn]
    used = sum(int((row.document_ids > 0).sum()) for row in rows)
    learnt = sum(int((row.loss_weights > 0).sum()) for row in rows)
    crops = sum(len(row.images) for row in rows)
    total = sum(row.input_ids.numel() for row in rows)
    docs = sum(len(sequence.references) for sequence in page.drawn)
    skipped = sum(len(sequence.skipped) for sequence in page.drawn)
    counts = counts_of(page.drawn)
    cells = (
        (f"{used / total:.1%}", "of token slots filled"),
        (f"{crops / len(rows) / config.data.crops_per_sequence:.0%}", "of crop slots filled"),
        (f"{docs / len(rows):.1f}", "documents per sequence"),
        (f"{used / docs:,.0f}", "tokens per document"),
        (f"{learnt / used:.1%}", "of tokens are learnt"),
        (f"{skipped}", "samples skipped"),
        (f"{counts['cut_samples']}", "samples cut at the sequence's length"),
        (f"{counts['repeated_frames']}", "frames shown again"),
        (f"{counts['unshown_moments']}", "moments of tracks without a frame"),
    )
    return (
        '<div class="figures">'
        + "".join(f"<div><b>{n}</b><span>{what}</span></div>" for n, what in cells)
        + "</div>"
    )


def counts_of(drawn: list[Sequence]) -> dict[str, int]:
    """losses.totals of the lanes that were drawn from."""
    return losses.totals({sequence.lane: sequence.state for sequence in drawn})


def packing_row(sequence: Sequence, config: RunConfig) -> str:
    """A bar of the sequence's documents, and a strip of its crops."""
    row = sequence.row
    length = row.input_ids.shape[1]
    kinds = token_kinds(row, config.model.text.vocab_size)
    cells = []
    for (document, kind), run in itertools.groupby(zip(row.document_ids[0].tolist(), kinds)):
        count = len(list(run))
        title = "padding"
        if document:
            source, sample, epoch = sequence.references[document - 1]
            title = f"{source} sample {sample}, epoch {epoch}: {count} {kind} tokens"
        hue = HUES[(document - 1) % len(HUES)]
        style = f"width:{100 * count / length:.3f}%;--h:{hue}"
        cells.append(f'<i class="{kind}" style="{style}" title="{html.escape(title)}"></i>')
    used = int((row.document_ids > 0).sum())
    dots = "".join(
        f'<i style="--h:{HUES[document % len(HUES)]}"></i>' for document in crop_documents(row)
    )
    free = "<u></u>" * (config.data.crops_per_sequence - len(row.images))
    return (
        f'<div class="pack"><label>lane {sequence.lane}</label><div class="bar">{"".join(cells)}</div>'
        f"<label>{used:,} / {length:,} tokens</label></div>"
        f'<div class="pack crops"><label></label><div class="dots">{dots}{free}</div>'
        f"<label>{len(row.images)} / {config.data.crops_per_sequence} crops</label></div>"
    )


def token_kinds(row: Batch, vocab_size: int) -> list[str]:
    """image, prompt, learnt (its successor is predicted from it) or empty for each token of a sequence."""
    ids = row.input_ids[0]
    weights = row.loss_weights[0]
    documents = row.document_ids[0]
    kinds = np.where(documents > 0, "prompt", "empty").astype(object)
    kinds[(weights > 0).numpy()] = "learnt"
    kinds[((ids >= vocab_size) & (documents > 0)).numpy()] = "image"
    return kinds.tolist()


def attention_maps(page: Page) -> Iterator[str]:
    """Three whole sequences, and of all drawn documents the one with the most branches, from its first branch on."""
    rows = [sequence.row for sequence in page.drawn]
    for number, row in enumerate(rows[:3]):
        yield attention_map(row, 0, row.input_ids.shape[1] - 1, f"sequence {number}")
    widest = max(rows, key=lambda row: int(row.branch_ids.max()))
    if not int(widest.branch_ids.max()):  # cut before the first word: there is no branch to magnify
        return
    tree = widest.document_ids[0, int(widest.branch_ids[0].argmax())]
    inside = (widest.document_ids[0] == tree).nonzero()[:, 0]
    first = int(inside[(widest.branch_ids[0][inside] > 0).nonzero()[0, 0]])
    start = max(int(inside[0]), first - 10)
    stop = int(inside[-1])
    yield attention_map(
        widest, start, stop, f"a document's {int(widest.branch_ids.max())} branches, magnified"
    )


def attention_map(row: Batch, start: int, stop: int, caption: str) -> str:
    """A picture of which of the tokens start .. stop sees which, coloured by document."""
    where = torch.linspace(start, stop, MAP).long()
    document = row.document_ids[0][where]
    branch = row.branch_ids[0][where]
    sees = (document[:, None] == document) & (document > 0) & (where[:, None] >= where)
    sees &= (branch == 0) | (branch[:, None] == branch)
    hues = torch.tensor(HUES)[(document - 1) % len(HUES)]
    pixels = np.full((MAP, MAP, 3), 245, np.uint8)
    for hue in set(hues.tolist()):
        own = (sees & (hues == hue)[:, None]).numpy()
        pixels[own & (branch > 0).numpy()] = colour(hue, 0.5)
        pixels[own & (branch == 0).numpy()] = colour(hue, 0.72)
    return f"<figure>{img(pixels, 'PNG')}<figcaption>{html.escape(caption)}</figcaption></figure>"
