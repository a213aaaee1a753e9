"""Does with a container runtime what kubelet does, over its socket: pods, containers, images.

Messages are generated from ``cri.proto`` beside this file, in a pool of their own.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SERVICES = ("runtime.v1.RuntimeService", "runtime.v1.ImageService")
_HERE = Path(__file__).parent
DEADLINE_S = 30.0
RUNNING, EXITED = 1, 2
_NODE = 2  # NamespaceMode: the machine's own


@cache
def _methods() -> dict[str, tuple[str, Any, Any]]:
    """Each method's path, and the classes of its request and its answer."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="needs grpcio-tools")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "cri"
        arguments = ["protoc", f"-I{_HERE}", f"--descriptor_set_out={target}", "cri.proto"]
        assert protoc.main(arguments) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return {
        method.name: (
            f"/{service}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for service in _SERVICES
        for method in pool.FindServiceByName(service).methods
    }


class Cri:
    """A client of the CRI: ``cri.PullImage(image={"image": NAME})`` and so on.

    Fields are keyword arguments; messages inside are dicts. Errors are `grpc.RpcError`. As kubelet,
    it may be told another socket for images than for pods.
    """

    def __init__(self, images: Path, pods: Path | None = None) -> None:
        options = (("grpc.default_authority", "localhost"),)
        self._channels = {
            service: grpc.insecure_channel(f"unix:{socket}", options=options)
            for service, socket in zip(_SERVICES, (pods or images, images), strict=True)
        }

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _methods():
            raise AttributeError(name)
        path, request, answer = _methods()[name]
        call = self._channels[path.split("/")[1]].unary_unary(
            path,
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return lambda **fields: call(request(**fields), timeout=DEADLINE_S)

    def wait_until_ready(self) -> None:
        """Wait for the runtime; the network need not be ready, as pods here use the machine's."""

        def ready() -> bool:
            with contextlib.suppress(grpc.RpcError):
                conditions = self.Status().status.conditions
                return any(one.type == "RuntimeReady" and one.status for one in conditions)
            return False

        wait_until(ready)

    def pull(self, image: str, **auth: str) -> str:
        fields = {"auth": auth} if auth else {}
        return str(self.PullImage(image={"image": image}, **fields).image_ref)

    @contextlib.contextmanager
    def pod(self, name: str, logs: Path) -> Iterator[Pod]:
        """Run a pod; at the end it is stopped and removed."""
        pod = self.run_pod(name, logs)
        try:
            yield pod
        finally:
            pod.remove()

    def run_pod(self, name: str, logs: Path) -> Pod:
        """Run a pod on the machine's network."""
        namespaces = {"network": _NODE, "pid": 1, "ipc": _NODE}
        config = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default"},
            "log_directory": str(logs),
            "labels": {"app": name},
            "linux": {"security_context": {"namespace_options": namespaces}},
        }
        return Pod(self, self.RunPodSandbox(config=config).pod_sandbox_id, config)


class Pod:
    """A pod that runs."""

    def __init__(self, cri: Cri, pod_id: str, config: dict[str, Any]) -> None:
        self.cri = cri
        self.id = pod_id
        self.config = config

    def remove(self) -> None:
        self.cri.StopPodSandbox(pod_sandbox_id=self.id)
        self.cri.RemovePodSandbox(pod_sandbox_id=self.id)

    def start(self, image: str, name: str = "main", *command: str) -> Container:
        """Create and start a container; without a command it is the image's."""
        config = {
            "metadata": {"name": name},
            "image": {"image": image},
            "command": command,
            "log_path": f"{name}.log",
            "linux": {"security_context": {"namespace_options": {"network": _NODE, "ipc": _NODE}}},
        }
        created = self.cri.CreateContainer(
            pod_sandbox_id=self.id, config=config, sandbox_config=self.config
        )
        self.cri.StartContainer(container_id=created.container_id)
        log = Path(self.config["log_directory"]) / f"{name}.log"
        return Container(self.cri, created.container_id, log)


class Container:
    """A container that was started."""

    def __init__(self, cri: Cri, container_id: str, log: Path) -> None:
        self.cri = cri
        self.id = container_id
        self._log = log

    def shell(self, script: str) -> str:
        """Run a script inside; it must end well."""
        done = self.cri.ExecSync(container_id=self.id, cmd=["sh", "-c", script], timeout=30)
        assert done.exit_code == 0, (script, done.stdout, done.stderr)
        return str(done.stdout.decode())

    def status(self) -> Any:
        return self.cri.ContainerStatus(container_id=self.id).status

    def ended(self) -> int:
        """Wait until it ends; return its exit code."""
        wait_until(lambda: self.status().state == EXITED)
        return int(self.status().exit_code)

    def log(self) -> str:
        """What it printed (CRI's log format: time, stream, tag, text)."""
        lines = self._log.read_text().splitlines()
        return "\n".join(re.sub(r"^\S+ std(out|err) [FP] ", "", line) for line in lines)

    def stop(self) -> None:
        self.cri.StopContainer(container_id=self.id, timeout=0)

    def remove(self) -> None:
        self.cri.RemoveContainer(container_id=self.id)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, "this did not come true in time"
        pause.wait(0.05)
