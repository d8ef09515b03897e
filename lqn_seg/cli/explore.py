"""Open the depth explorer: a page on this machine that shows the inside of a fit.

It opens on a damaged scene. Choose another one or drop an image, damage it, and compare the masks
of any methods. Move a slider through the teacher's depth, also between layers, and through the
steps of the fit. The page is served to 127.0.0.1 only, unless --host is set, and needs no network.

Examples:
    lqn-seg explore
    lqn-seg explore --port 8000 --no-browser
    lqn-seg explore --config coco_panoptic --device cuda
    lqn-seg explore --teacher shipped=datasets/demo/teacher mine=output/teacher
"""

import sys
from collections.abc import Sequence

from lqn_seg.cli.parser import DEMO, Namespace, Parser, add_config_flags, check_config, exit_status
from lqn_seg.errors import InputError


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = Parser("lqn-seg explore", description=__doc__)
    teachers = "teachers to choose from (default: that of the configuration)"
    parser.add_argument("--teacher", nargs="+", default=[], metavar="NAME=WEIGHTS", help=teachers)
    parser.add("--host", "127.0.0.1", "address to listen on; 0.0.0.0 serves the whole network")
    parser.add("--port", 7860, "port; 0 takes any free one")
    parser.add("--no-browser", False, "print the address without opening a browser")
    add_config_flags(parser, DEMO)
    return parser.parse_args(words)


def serve(arguments: Namespace) -> None:
    """Serve until Ctrl-C."""
    for word in arguments.teacher:
        if not all(word.partition("=")):
            raise InputError(f"--teacher: expected NAME=WEIGHTS, not {word!r}")
    teachers = dict(word.split("=", 1) for word in arguments.teacher)
    check_config(arguments)
    import webbrowser

    from lqn_seg.lab.explorer.server import make_server, open_explorer

    explorer = open_explorer(arguments.config_file, teachers, arguments.device, arguments.overrides)
    server = make_server(explorer, arguments.host, arguments.port)
    address = f"http://{arguments.host}:{server.server_address[1]}/"
    print(f"depth explorer: {address} (Ctrl-C ends it)", flush=True)
    if not arguments.no_browser:
        webbrowser.open(address)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", file=sys.stderr)


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(lambda: serve(parse_arguments(words)), "nothing has been served yet")
