"""Asks a trained model about pictures: --checkpoint RUN --image a.jpg "How many dogs?"

The checkpoint is a run's folder, one of its checkpoints or a folder of weights. The answer appears as it is made.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from molmo_ds.cli import caller
from molmo_ds.config import home
from molmo_ds.data.sample.prompts import BARE_STYLES
from molmo_ds.eval.pictures import draw_points, read_picture
from molmo_ds.infer.generate import Options, generate, room, stream_text, warn_of_cuts
from molmo_ds.infer.load import load


def main(arguments: list[str] | None = None) -> None:
    """Load, ask, print."""
    given = read_arguments(arguments)
    options = Options(
        given.max_new_tokens,
        given.temperature,
        given.top_k,
        given.top_p,
        given.beams,
        given.seed,
        tuple(given.stop),
    )
    if not given.question.strip() and given.style in BARE_STYLES:
        raise ValueError("The question is empty; write one, or name a --style that needs none, as long_caption.")
    pictures = [read_picture(path) for path in given.image]
    answerer = load(given.checkpoint, given.tokenizer, given.device)
    prompt = answerer.batch([answerer.builder.prompt(pictures, given.question, given.style)])
    places = int(room(answerer.model, prompt))
    if places < given.max_new_tokens:
        known = answerer.model.config.text.max_position_embeddings
        asked = given.max_new_tokens
        say(f"the answer ends after {places} of {asked} tokens, at position {known}, the model's last.")
    tokenizer, text = answerer.builder.tokenizer, ""
    if given.beams > 1:
        made = generate(answerer.model, prompt, tokenizer.eos, options, tokenizer.decode)
        pieces = iter(made.texts(tokenizer.decode))
        warn_of_cuts(answerer.model, made.cut)
    else:
        pieces = stream_text(answerer.model, prompt, tokenizer.eos, options, tokenizer.decode)
    for piece in pieces:
        piece = piece if text else piece.lstrip()  # answers begin with a space
        text += piece
        print(piece, end="", flush=True)
    print()
    if given.draw:
        draw_points(pictures[0], text, given.draw)


def say(sentence: str) -> None:
    """A note beside the answer."""
    print(f"{caller()}: {sentence}", file=sys.stderr, flush=True)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--checkpoint", type=home, required=True)
    parser.add_argument("--image", type=home, action="append", default=[], help="may be given several times")
    parser.add_argument("--style", default="demo", help="as in training, for example vqa2, pointing, point_count")
    parser.add_argument("--tokenizer", type=home, help="its folder, where the checkpoint does not know it")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--max-new-tokens", type=int, default=448)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="append", default=[])
    parser.add_argument("--draw", type=home, help="write the first picture with the points of the answer to this file")
    given = parser.parse_args(arguments)
    if given.draw and not given.image:
        parser.error("--draw needs a picture; give one with --image.")
    if given.draw and Path(given.draw).suffix.lower() not in Image.registered_extensions():
        parser.error(f"--draw {given.draw} has no picture's ending; write it as .png or .jpg.")
    if given.draw and not Path(given.draw).absolute().parent.is_dir():
        parser.error(f"--draw {given.draw} lies in no folder that is there.")
    return given
