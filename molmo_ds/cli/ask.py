"""Asks a trained model about pictures or a video: --checkpoint RUN --image a.jpg "How many dogs?"

The checkpoint is a run's folder, one of its checkpoints, a folder of weights, a released folder or an export.
The answer appears as it is made.
"""

import argparse
import os
import sys
from collections.abc import Iterator

import numpy as np

from molmo_ds.cli import caller
from molmo_ds.cli.ask_options import read_arguments
from molmo_ds.data.sample.prompts import BARE_STYLES
from molmo_ds.eval.pictures import Video, draw_points, draw_track, read_picture, read_video
from molmo_ds.infer.generate import Options, generate, room, stream_text, warn_of_cuts
from molmo_ds.infer.load import load
from molmo_ds.infer.options import GREEDY
from molmo_ds.serve import client


def main(arguments: list[str] | None = None) -> None:
    """Ask, print, draw."""
    given = read_arguments(__doc__, arguments)
    options = Options(
        given.max_new_tokens,
        given.temperature,
        given.top_k,
        given.top_p,
        given.beams,
        given.seed,
        tuple(given.stop),
    )
    unread = [
        name
        for name in ("top_k", "top_p", "seed")
        if getattr(options, name) != getattr(GREEDY, name)
    ]
    if unread and not options.temperature:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unread)
        say(
            f"without a --temperature above 0 the likeliest token is taken, and nothing is drawn by {names}."
        )
    if not given.question.strip() and given.style in BARE_STYLES:
        raise ValueError(
            "The question is empty; write one, or name a --style that needs none, as long_caption."
        )
    pictures = [read_picture(path) for path in given.image]
    video = read_video(given.video, given.clip, given.num_frames) if given.video else None
    text = ""
    for piece in (ask_server if given.server else ask_checkpoint)(given, options, pictures, video):
        piece = piece if text else piece.lstrip()  # answers begin with a space
        text += piece
        print(piece, end="", flush=True)
    print()
    if given.draw:
        drawn = draw_track(video, text) if video else draw_points(pictures[0], text)
        drawn.save(given.draw)


def ask_checkpoint(
    given: argparse.Namespace, options: Options, pictures: list[np.ndarray], video: Video | None
) -> Iterator[str]:
    """The pieces of an answer that is made in this process."""
    answerer = load(given.checkpoint, given.tokenizer, given.device)
    builder = answerer.builder
    seen = builder.see_video(video.record) if video else builder.see(pictures)
    prompt = answerer.batch([builder.prompt(seen, given.question, given.style)])
    places = int(room(answerer.model, prompt))
    if places < given.max_new_tokens:
        known = answerer.model.config.text.max_position_embeddings
        asked = given.max_new_tokens
        say(
            f"the answer ends after {places} of {asked} tokens, at position {known}, the model's last."
        )
    tokenizer = builder.tokenizer
    if given.beams > 1:
        made = generate(answerer.model, prompt, tokenizer.eos, options, tokenizer.decode)
        yield from made.texts(tokenizer.decode)
        warn_of_cuts(answerer.model, made.cut)
    else:
        yield from stream_text(answerer.model, prompt, tokenizer.eos, options, tokenizer.decode)


def ask_server(
    given: argparse.Namespace, options: Options, pictures: list[np.ndarray], video: Video | None
) -> Iterator[str]:
    """The pieces of a server's answer."""
    key = os.environ.get(given.api_key_env) if given.api_key_env else None
    if given.api_key_env and not key:
        raise ValueError(
            f"--api-key-env names {given.api_key_env}, which is empty; set it to the key."
        )
    body = client.request_body(
        given.question,
        pictures,
        video,
        style=given.style,
        max_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop=list(options.stop),
    )
    return client.stream(given.server, key, body)


def say(sentence: str) -> None:
    """A note that goes with the answer."""
    print(f"{caller()}: {sentence}", file=sys.stderr, flush=True)
