"""A page over a run's folder: curves, held-out losses, answers, checkpoints, faults and restarts, samples.

    RUN                    serves it on this machine, rendered at every load
    RUN --out PAGE.html    writes it as one file that needs no other

The run may be running, killed, or of an older release: what cannot be read is said in its section.
"""

import argparse

from molmo_ds.cli.checked_options import Parser, page_file
from molmo_ds.config import home
from molmo_ds.files import write_atomic
from molmo_ds.show import folder, page, server


def main(arguments: list[str] | None = None) -> None:
    """Write the page, or serve it until Ctrl-C."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=home, help="folder or URL of a run")
    parser.add_argument("--out", type=page_file, help="HTML file to write, instead of serving")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8080, help="0 = any (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=12, help="to draw (default: %(default)s)")
    parser.add_argument(
        "--examples", type=int, default=8, help="answers of each evaluation (default: %(default)s)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all checkpoints whole and compare their checksums",
    )
    args = parser.parse_args(arguments)
    if args.samples < 0 or args.examples < 0:
        parser.error("--samples and --examples must be at least 0")
    wish = page.Wish(args.samples, args.examples, args.verify)
    run = folder.open_run(args.run)
    if args.out:
        write_atomic(args.out, page.render(run, wish).encode(errors="replace"))
        print(f"{args.out} ({args.out.stat().st_size / 1e6:.1f} MB) shows {run}")
        return
    serving = server.server(args.host, args.port, lambda: page.render(run, wish))
    print(f"http://{args.host}:{serving.server_port}/ shows {run}; Ctrl-C ends it.", flush=True)
    if not server.is_loopback(args.host):
        print("Everybody who reaches this address sees the run, its samples included.", flush=True)
    try:
        serving.serve_forever()
    except KeyboardInterrupt:
        serving.server_close()
