"""A page with the pictures, crops, tokens, loss weights, branches and packing of real batches of one data set.

python tools/visualize.py SHARDS OUT.html --config runs/one/config.yaml
python tools/visualize.py SHARDS OUT.html --tokenizer FOLDER preset=molmo_7b_d data.sequence_length=2304
Without a tokenizer a small one is trained on the data set's own text, so token counts are then not those of a model.
"""

import argparse
import base64
import dataclasses
import html
import io
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from molmo_ds import settings
from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig, SourceConfig, home
from molmo_ds.data.decode import load_image
from molmo_ds.data.order.loader import Mixture, Sequence, rank_lanes, sequences
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.tokens import train_tokenizer
from molmo_ds.files import local

STYLE = (Path(__file__).parent / "visualize.css").read_text()
HUES = (212, 152, 28, 282, 340, 188, 60, 250)  # one per document of a sequence, again and again
MAP = 300  # side of an attention map, pixels
PACKING = """<p class="lead">One row per sequence. Each colour is a document: <i class="key image"></i> picture tokens,
<i class="key prompt"></i> text that is given, <i class="key learnt"></i> text that is learnt, <i class="key empty"></i>
padding. Below each row: the crops that travel with it.</p>"""
MAPS = """<p class="lead">Rows are tokens that look, columns tokens that are seen. Documents do not see each other;
branches of one document share its picture (pale) and do not see each other.</p>"""
DOCUMENTS = """<p class="lead">The picture with the tiling that was chosen; its crops, the global view on top,
dimmed where a neighbour shows the same patches; then every branch, token by token. Shaded tokens are learnt, the darker
the more they weigh (hold the pointer over one).</p>"""


@dataclasses.dataclass
class Page:
    """What the parts of the page need."""

    mixture: Mixture
    drawn: list[Sequence]
    documents: int  # to show in full


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=home, help="folder, URL or glob of indexed shards")
    parser.add_argument("out", type=local, help="HTML file to write")
    parser.add_argument("overrides", nargs="*", help="settings of the run, key=value")
    parser.add_argument("--config", type=home, help="config.yaml of a run")
    parser.add_argument("--tokenizer", type=home, help="folder of a tokenizer")
    parser.add_argument("--sequences", type=int, default=16, help="packed sequences to draw")
    parser.add_argument("--documents", type=int, default=8, help="of them, documents to show in full")
    args, more = parser.parse_known_intermixed_args(argv)
    wrong = [word for word in args.overrides + more if "=" not in word]
    if wrong:
        parser.error(f"'{wrong[0]}' is neither an option nor key=value")
    if args.sequences < 1 or args.documents < 0:
        parser.error("--sequences must be at least 1 and --documents at least 0")
    base = [] if args.config else ["preset=molmo_7b_d"]
    config = settings.load(args.config, base + args.overrides + more)
    with tempfile.TemporaryDirectory() as folder:
        data = dataclasses.replace(
            config.data,
            sources={Path(args.dataset.rstrip("/")).name: SourceConfig(path=args.dataset)},
            tokenizer=args.tokenizer or config.data.tokenizer or train(args.dataset, folder, config),
            group_rates={},
            num_workers=0,
        )
        lanes = min(8, len(ShardSet(args.dataset)))
        config = dataclasses.replace(config, data=data, global_batch=lanes, micro_batch=1)
        mixture = Mixture.open(config)
        stream = sequences(config, mixture, rank_lanes(config, 0, 1), {})
        drawn = list(tqdm(itertools.islice(stream, args.sequences), total=args.sequences, desc="sequences"))
        page = Page(mixture, drawn, args.documents)
        args.out.write_text(render(page, config, args.dataset))
    skipped = [what for sequence in drawn for what in sequence.skipped]
    samples, tokens = cut_of(drawn)
    said = f"; {len(skipped)} samples skipped, the first {skipped[0]}" if skipped else ""
    said += f"; {samples} samples cut by {tokens} tokens at data.sequence_length" if samples else ""
    print(f"{args.out} ({args.out.stat().st_size / 1e6:.1f} MB) shows {len(drawn)} sequences of {args.dataset}{said}")


def train(dataset: str, folder: str, config: RunConfig) -> str:
    """A tokenizer of the data set's own first texts."""
    shards = ShardSet(dataset)
    texts = (str(shards.record(i)["annotations"]) for i in range(min(300, len(shards))))
    train_tokenizer(texts, min(1000, config.model.text.vocab_size), folder)
    return folder


def render(page: Page, config: RunConfig, dataset: str) -> str:
    """The whole page."""
    shards, name = page.mixture.sets[0], html.escape(Path(dataset.rstrip("/")).name)
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
    cells = (
        (f"{used / total:.1%}", "of token slots filled"),
        (f"{crops / len(rows) / config.data.crops_per_sequence:.0%}", "of crop slots filled"),
        (f"{docs / len(rows):.1f}", "documents per sequence"),
        (f"{used / docs:,.0f}", "tokens per document"),
        (f"{learnt / used:.1%}", "of tokens are learnt"),
        (f"{skipped}", "samples skipped"),
        (f"{cut_of(page.drawn)[0]}", "samples cut at the sequence's length"),
    )
    return (
        '<div class="figures">' + "".join(f"<div><b>{n}</b><span>{what}</span></div>" for n, what in cells) + "</div>"
    )


def cut_of(drawn: list[Sequence]) -> tuple[int, int]:
    """Samples, and tokens of them, that were cut at the sequence's length."""
    last = {sequence.lane: sequence.state for sequence in drawn}
    return tuple(sum(state[name] for state in last.values()) for name in ("cut_samples", "cut_tokens"))


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
    dots = "".join(f'<i style="--h:{HUES[document % len(HUES)]}"></i>' for document in crop_documents(row))
    free = "<u></u>" * (config.data.crops_per_sequence - len(row.images))
    return (
        f'<div class="pack"><label>lane {sequence.lane}</label><div class="bar">{"".join(cells)}</div>'
        f"<label>{used:,} / {length:,} tokens</label></div>"
        f'<div class="pack crops"><label></label><div class="dots">{dots}{free}</div>'
        f"<label>{len(row.images)} / {config.data.crops_per_sequence} crops</label></div>"
    )


def token_kinds(row: Batch, vocab_size: int) -> list[str]:
    """image, prompt, learnt (its successor is predicted from it) or empty for each token of a sequence."""
    ids, weights, documents = row.input_ids[0], row.loss_weights[0], row.document_ids[0]
    kinds = np.where(documents > 0, "prompt", "empty").astype(object)
    kinds[(weights > 0).numpy()] = "learnt"
    kinds[((ids >= vocab_size) & (documents > 0)).numpy()] = "image"
    return kinds.tolist()


def crop_documents(row: Batch) -> list[int]:
    """For each crop the document, from 0, that holds its tokens."""
    if not len(row.images):
        return []
    first = row.image_positions.amax(dim=1).clamp(min=0)
    return (row.document_ids[0][first] - 1).tolist()


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
    start, stop = max(int(inside[0]), first - 10), int(inside[-1])
    yield attention_map(widest, start, stop, f"a document's {int(widest.branch_ids.max())} branches, magnified")


def attention_map(row: Batch, start: int, stop: int, caption: str) -> str:
    """A picture of which of the tokens start .. stop sees which, coloured by document."""
    where = torch.linspace(start, stop, MAP).long()
    document, branch = row.document_ids[0][where], row.branch_ids[0][where]
    sees = (document[:, None] == document) & (document > 0) & (where[:, None] >= where)
    sees &= (branch == 0) | (branch[:, None] == branch)
    hues = torch.tensor(HUES)[(document - 1) % len(HUES)]
    pixels = np.full((MAP, MAP, 3), 245, np.uint8)
    for hue in set(hues.tolist()):
        own = (sees & (hues == hue)[:, None]).numpy()
        pixels[own & (branch > 0).numpy()] = colour(hue, 0.5)
        pixels[own & (branch == 0).numpy()] = colour(hue, 0.72)
    return f"<figure>{img(pixels, 'PNG')}<figcaption>{html.escape(caption)}</figcaption></figure>"


def colour(hue: int, light: float) -> tuple[int, int, int]:
    """RGB of a hue in degrees at 55 % saturation."""
    import colorsys

    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue / 360, light, 0.55))


def documents(page: Page) -> Iterator[str]:
    """Documents in full: half of them those with the most branches, the others as they come."""
    found = []
    for sequence in page.drawn:
        for number in range(1, len(sequence.references) + 1):
            mine = sequence.row.document_ids[0] == number
            found.append((-int(sequence.row.branch_ids[0][mine].max()), len(found), sequence, number))
    trees = sorted(found, key=lambda entry: entry[:2])[: page.documents // 2]
    shown = {entry[1] for entry in trees}
    others = [entry for entry in found if entry[1] not in shown][: page.documents - len(trees)]
    for _, _, sequence, number in sorted(trees + others, key=lambda entry: entry[1]):
        source, sample, epoch = sequence.references[number - 1]
        yield document(page, sequence, number, f"{source} sample {sample}, epoch {epoch}")


def document(page: Page, sequence: Sequence, number: int, where: str) -> str:
    """One document: picture, crops, branches."""
    row, builder = sequence.row, page.mixture.builder
    _, sample, _ = sequence.references[number - 1]
    shards = page.mixture.sets[page.mixture.names.index(sequence.references[number - 1][0])]
    record = shards.read(sample)
    mine = (row.document_ids[0] == number).nonzero()[:, 0]
    crops = [i for i, owner in enumerate(crop_documents(row)) if owner == number - 1]
    pictures = []
    for size, data in zip(record["sizes"], record["pixels"]):
        if 0 not in size:
            layout = builder.images.layout(*size)
            columns = layout.tiling[1] if layout.tiling else 1
            own, crops = crops[: layout.crops], crops[layout.crops :]
            tiling = "x".join(map(str, layout.tiling)) if layout.tiling else "one crop"
            thumbs = "".join(crop(row, i, builder) for i in own)
            caption = f"<figcaption>{size[0]} x {size[1]} &rarr; {tiling}</figcaption>"
            tiles = f'<div class="tiles" style="--c:{columns}">{thumbs}</div>'
            pictures.append(f'<div class="picture"><figure>{photo(data)}{caption}</figure>{tiles}</div>')
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


def crop(row: Batch, index: int, builder: object) -> str:
    """A crop as the tower gets it, dimmed where its patches are used from a neighbour."""
    pixels = row.images[index]
    if pixels.ndim == 2:
        return ""
    side = round(row.image_positions.shape[1] ** 0.5)
    used = (row.image_positions[index] >= 0).view(side, side).float()[None, None]
    shade = torch.nn.functional.interpolate(used, pixels.shape[:2])[0, 0, ..., None]
    small = Image.fromarray((pixels * (0.4 + 0.6 * shade)).byte().numpy())
    small.thumbnail((150, 150))
    return img(np.asarray(small), "JPEG")


def img(pixels: np.ndarray, kind: str) -> str:
    """Pixels as an inline picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/{kind.lower()};base64,{data}" alt="">'


def branches(row: Batch, mine: torch.Tensor, builder: object) -> Iterator[str]:
    """The prefix and each branch as boxes of tokens; a branch ends with the label of its last token."""
    ids, labels, weights = (getattr(row, name)[0][mine] for name in ("input_ids", "labels", "loss_weights"))
    branch, heaviest = row.branch_ids[0][mine], max(float(row.loss_weights.max()), 1e-9)
    positions = row.position_ids[0][mine]
    for number in branch.unique().tolist():
        inside = (branch == number).nonzero()[:, 0].tolist()
        cells, before = [], inside[0] - 1 if number == 1 else None
        shown = [(ids[i].item(), before if k == 0 else i - 1, positions[i].item()) for k, i in enumerate(inside)]
        if number:
            shown.append((labels[inside[-1]].item(), inside[-1], positions[inside[-1]].item() + 1))
        for is_image, group in itertools.groupby(shown, lambda token: token[0] >= builder.tokenizer.vocab_size):
            tokens = list(group)
            if is_image:
                cells.append(f'<b class="image">{len(tokens)} picture tokens</b>')
                continue
            for token, predictor, position in tokens:
                weight = float(weights[predictor]) if predictor is not None else 0.0
                text = html.escape(builder.tokenizer.name(token)).replace(" ", "&nbsp;").replace("\n", "&#8629;")
                title = f"id {token}, position {position}, weight {weight:.3f}"
                style = f' style="--w:{weight / heaviest:.2f}"' if weight else ""
                cells.append(f'<s title="{title}"{" class=on" if weight else ""}{style}>{text or "&middot;"}</s>')
        name = f"branch {number}" if number else "shared"
        total = sum(float(weights[predictor]) for _, predictor, _ in shown if predictor is not None)
        weight = f"weight {total:.1f}" if number else f"{len(inside)} tokens"
        yield f'<div class="branch"><label>{name}<br><small>{weight}</small></label><p>{"".join(cells)}</p></div>'


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"visualize: {error}")
