"""The options of `molmo-ds ask`."""

import argparse
from pathlib import Path

from PIL import Image

from molmo_ds.cli.checked_options import Parser
from molmo_ds.config import home


def read_arguments(description: str, arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--checkpoint", type=home, help="a model that answers in this process")
    parser.add_argument(
        "--server",
        metavar="URL",
        help="one that answers instead, such as http://127.0.0.1:8000, with /v1 or without",
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="variable that holds the server's key"
    )
    parser.add_argument(
        "--image", type=home, action="append", default=[], help="may be given several times"
    )
    parser.add_argument("--video", type=home, help="an mp4, a WebM or a GIF instead of pictures")
    parser.add_argument(
        "--clip", type=float, nargs=2, metavar=("BEGIN", "END"), help="seconds of the video"
    )
    parser.add_argument("--num-frames", type=int, help="the most that are shown of the video")
    parser.add_argument(
        "--style", default="demo", help="as in training, for example vqa2, pointing, point_count"
    )
    parser.add_argument(
        "--tokenizer", type=home, help="its folder, where the checkpoint does not know it"
    )
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--max-new-tokens", type=int, default=448)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="append", default=[])
    parser.add_argument(
        "--draw",
        type=home,
        help="write the first picture with the points of the answer to this file; of a video the frames with points",
    )
    given = parser.parse_args(arguments)
    if (given.checkpoint is None) == (given.server is None):
        parser.error("Name what is to answer: either --checkpoint FOLDER or --server URL.")
    if given.server and (given.beams > 1 or given.tokenizer or given.device):
        parser.error(
            "--beams, --tokenizer and --device belong to a checkpoint; a server has its own."
        )
    if given.checkpoint and given.api_key_env:
        parser.error("--api-key-env belongs to a server; a checkpoint asks for no key.")
    if given.video and given.image:
        parser.error("A question is about pictures or about one video; leave --image or --video.")
    if (given.clip or given.num_frames is not None) and not given.video:
        parser.error("--clip and --num-frames say what is shown of a --video; give one.")
    if given.draw and not (given.image or given.video):
        parser.error("--draw needs a picture or a video; give one with --image or --video.")
    if given.draw and Path(given.draw).suffix.lower() not in Image.registered_extensions():
        parser.error(f"--draw {given.draw} has no picture's ending; write it as .png or .jpg.")
    if given.draw and any(_same(given.draw, one) for one in (*given.image, given.video)):
        parser.error(f"--draw {given.draw} would overwrite what is asked about; name another file.")
    if given.draw and not Path(given.draw).absolute().parent.is_dir():
        parser.error(f"--draw {given.draw} lies in no folder that is there.")
    return given


def _same(one: str, other: str | None) -> bool:
    """Whether two paths lead to the same file."""
    return bool(other) and Path(one).exists() and Path(other).exists() and Path(one).samefile(other)
