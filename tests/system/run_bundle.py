"""Run one container as ``pagein run`` does; a program of its own, so that tests can send it
signals and give it terminals. Reads its order as JSON from the first argument."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pagein.errors import PageinError
from pagein.runtime.bundle import claim_bundle, prepare_bundle
from pagein.runtime.container import run_container
from pagein.runtime.host import gather_facts
from pagein.runtime.resolve import find_runtime
from pagein.runtime.spec import ProcessDefaults, RunOptions, Volume


def main() -> int:
    order = json.loads(sys.argv[1])
    asked = {k: tuple(v) if isinstance(v, list) else v for k, v in order["options"].items()}
    asked["volumes"] = tuple(Volume.parse(text) for text in asked.get("volumes", ()))
    image = {k: tuple(v) if isinstance(v, list) else v for k, v in order["image"].items()}
    options, host = RunOptions(**asked), gather_facts()
    bundle = Path(order["bundle"])
    try:
        with claim_bundle(bundle, options.name):
            prepare_bundle(bundle, ProcessDefaults(**image), Path(order["rootfs"]), options, host)
            return run_container(
                find_runtime(order["runtime"]),
                bundle,
                options.name,
                tty=options.tty,
                hierarchy=host.hierarchy,
            )
    except PageinError as error:
        print(f"pagein: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
