"""What every command is given: the global options, and from them the configuration and the node."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagein.daemon.config import Config
    from pagein.daemon.images import Images
    from pagein.daemon.paths import Paths


@dataclass
class Settings:
    """The global options. What they lead to is made when it is first asked for."""

    config_file: Path | None = None
    plain_http: tuple[str, ...] = ()
    debug: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    """Settings of the configuration that options of the command replace, by name."""

    @cached_property
    def paths(self) -> Paths:
        """Where this machine's state lives."""
        from pagein.daemon.paths import Paths

        return Paths.from_environment(os.environ, root=os.geteuid() == 0)

    @cached_property
    def config(self) -> Config:
        """The configuration, read once. Raises UsageError."""
        from pagein.daemon.config import load_config

        return load_config(self.config_file, plain_http=self.plain_http, changes=self.changes)

    @cached_property
    def images(self) -> Images:
        """The images that this machine can start."""
        from pagein.daemon.images import Images
        from pagein.daemon.wiring import Node

        return Images(Node(self.paths, self.config))
