"""Search images with a sentence, base and refined side by side: `clip-refine search "a red bicycle"`.

The page opens on this machine alone; Ctrl-C ends it. Without further options the images are those of the first
evaluated set, whose features are there already; a folder of yours is embedded first.
"""

from __future__ import annotations

import argparse
import logging
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from werkzeug.serving import make_server

from pipeline_lib import terminal
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.search.pictures import Pictures
from pipeline_lib.search.server import make_app

PRINTED = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the first images that each model finds, and serve the page.

    Raises:
        UserError: There are no models or images, or the port is taken.
    """
    parser = argparse.ArgumentParser(
        prog="clip-refine search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("query", nargs="?", help="a sentence (default: asked for on the page)")
    parser.add_argument("--set", help="the evaluated set whose images are searched (default: the first)")
    parser.add_argument("--images", type=Path, help="a folder of images instead")
    parser.add_argument("--port", type=int, default=0, help="of the page (default: a free one)")
    parser.add_argument("--print", action="store_true", help="only print what is found, no page")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: %(default)s)")
    options = parser.parse_args(arguments)
    paths = config.load(options.params, Paths)
    pictures = Pictures.of_folder(paths, options.images) if options.images else Pictures.of_set(paths, options.set)
    if options.query:
        for model, hits in pictures.search(options.query, PRINTED).items():
            print(f"{model}: " + ", ".join(f"{hit.name} ({hit.cosine:.3f})" for hit in hits))
    if not options.print:
        _serve(pictures, options.query, options.port)


def _serve(pictures: Pictures, query: str | None, port: int) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        server = make_server("127.0.0.1", port, make_app(pictures), threaded=True)
    except (OSError, SystemExit) as error:  # werkzeug exits where the port is taken
        raise UserError(f"--port: {port} is taken; leave it out for a free one") from error
    address = f"http://127.0.0.1:{server.port}/" + (f"?query={quote(query)}" if query else "")
    print(f"{len(pictures):,} images: {address}   (Ctrl-C ends it)", flush=True)
    webbrowser.open(address)
    server.serve_forever()


if __name__ == "__main__":
    with terminal.one_line_errors():
        main()
