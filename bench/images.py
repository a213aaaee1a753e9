"""The benchmark images, one or more of each class of HelloBench, and the command that builds them.

    python bench/images.py --out DIR debian-python nginx torch-cuda

Made of Debian, PyPI and npm packages. Each image is a tag of one layout `DIR/layout`; they share
their lower layers, as real images do. Beside it, `DIR/trees/NAME` is the image unpacked, which is
what a start from the local disk uses. What is there already is not built again. Needs root,
debootstrap, umoci, pigz and npm.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

WEB_APP = """\
import signal
import sys

from flask import Flask, jsonify

app = Flask(__name__)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the first process of a container needs one


@app.get("/health")
def health():
    return jsonify(status="ready")


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=20081)
"""
NODE_SERVER = """\
const app = require('express')();
app.get('/health', (request, answer) => answer.json({status: 'ready'}));
app.listen(20082, '127.0.0.1', () => console.log('listening'));
process.on('SIGTERM', () => process.exit(0));
"""
HELLO_C = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'
HELLO_JAVA = """\
import java.util.stream.IntStream;

class Hello {
    public static void main(String[] words) {
        System.out.println(IntStream.of(40, 2).sum());
    }
}
"""
NGINX_CONF = """\
daemon off;
events {}
http { server { listen 127.0.0.1:20080; location /health { return 200 'ready'; } } }
"""


@dataclass(frozen=True)
class Image:
    """One image: its class, what it stands on, and what its own layer holds.

    ``debian``, ``wheels`` and ``npm`` are packages; ``files`` maps paths to text; ``model``: a
    transformer with random weights, which the image below it makes and saves as safetensors.
    """

    kind: str
    base: str | None = "debian-python"
    debian: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    model: bool = False


IMAGES = {
    "debian-python": Image("distribution", None),
    "perl": Image("language", debian=("perl", "libjson-perl")),
    "ruby": Image("language", debian=("ruby",)),
    "gcc": Image("language", debian=("gcc", "libc6-dev"), files={"app/hello.c": HELLO_C}),
    "openjdk": Image("language", debian=("openjdk-17-jdk-headless",),
                     files={"app/Hello.java": HELLO_JAVA}),
    "node": Image("language", debian=("nodejs",), npm=("express",),
                  files={"app/server.js": NODE_SERVER}),
    "nginx": Image("server", debian=("nginx-light",), files={"app/nginx.conf": NGINX_CONF}),
    "redis": Image("server", debian=("redis-server",)),
    "postgresql": Image("server", debian=("postgresql-15",)),
    "flask": Image("server", wheels=("flask",), files={"app/app.py": WEB_APP}),
    "scipy": Image("scientific python", wheels=("numpy", "scipy", "pandas", "scikit-learn")),
    "torch-cuda": Image("torch-cuda", wheels=("torch", "numpy", "transformers", "safetensors")),
    "transformer": Image("CPU transformer", "torch-cuda", model=True),
}  # fmt: skip


def main() -> None:
    """Read the command line."""
    from image_steps import build, unpack_tree

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("/var/tmp/pagein-bench"))
    parser.add_argument("--no-trees", action="store_true", help="do not unpack the images")
    parser.add_argument("images", nargs="*", default=list(IMAGES), metavar="IMAGE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.images:
        build(name, arguments.out)
        if not arguments.no_trees:
            unpack_tree(name, arguments.out)


if __name__ == "__main__":
    main()
