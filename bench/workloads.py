"""What is started in each image, and how it is seen to be ready, as HelloBench does it."""

from __future__ import annotations

from dataclasses import dataclass

TINY_GENERATE = """\
import torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(1)
model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=2)).eval()
out = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
print('generated', out.shape[1])
"""
GENERATE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained('/app/model')
model = AutoModelForCausalLM.from_pretrained('/app/model').eval()
out = model.generate(**tokenizer('the same every time', return_tensors='pt'), max_new_tokens=5,
                     min_new_tokens=5, do_sample=False)
print('generated', out.shape[1])
"""
POSTGRES = (
    "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
    "/usr/lib/postgresql/15/bin/postgres", "-D", "/var/lib/postgresql/15/main",
    "-c", "config_file=/etc/postgresql/15/main/postgresql.conf", "-c", "ssl=off",
    "-c", "unix_socket_directories=/tmp", "-c", "port=20432",
)  # fmt: skip


@dataclass(frozen=True)
class Says:
    """Ready when this regular expression is found in what was printed."""

    pattern: str


@dataclass(frozen=True)
class Answers:
    """Ready when this address answers 200."""

    url: str


@dataclass(frozen=True)
class Workload:
    """One command of one image. A server goes on until it is stopped.

    ``trained``: the profile of the image is recorded from this workload, where it has several.
    """

    name: str
    image: str
    args: tuple[str, ...]
    ready: Says | Answers
    server: bool = False
    trained: bool = True


def _python(code: str) -> tuple[str, ...]:
    return ("python3", "-c", code)


WORKLOADS = {
    one.name: one
    for one in (
        Workload("debian", "debian-python", ("/bin/echo", "hello"), Says("hello")),
        Workload("perl", "perl", ("perl", "-MPOSIX", "-MJSON", "-e", 'print "hello\\n"'),
                 Says("hello")),
        Workload("ruby", "ruby", ("ruby", "-rjson", "-rset", "-e", 'puts "hello"'), Says("hello")),
        Workload("python", "debian-python", _python("import json, ssl; print('hello')"),
                 Says("hello"), trained=False),
        Workload("gcc", "gcc", ("sh", "-c", "gcc -O2 -o /tmp/hello /app/hello.c && /tmp/hello"),
                 Says("hello")),
        Workload("openjdk", "openjdk", ("java", "/app/Hello.java"), Says("42")),
        Workload("node", "node", ("node", "/app/server.js"), Answers(
                 "http://127.0.0.1:20082/health"), server=True),
        Workload("nginx", "nginx", ("nginx", "-c", "/app/nginx.conf"),
                 Answers("http://127.0.0.1:20080/health"), server=True),
        Workload("redis", "redis", ("redis-server", "--port", "20379", "--save", ""),
                 Says("Ready to accept connections"), server=True),
        Workload("postgresql", "postgresql", POSTGRES,
                 Says("database system is ready to accept connections"), server=True),
        Workload("flask", "flask", ("python3", "/app/app.py"),
                 Answers("http://127.0.0.1:20081/health"), server=True),
        Workload("scipy", "scipy", _python(
                 "import numpy, scipy.stats, pandas, sklearn; print(numpy.__version__)"),
                 Says(r"\d\.\d")),
        Workload("torch", "torch-cuda", _python("import torch; print(torch.ones(3).sum())"),
                 Says(r"tensor\(3")),
        Workload("torch-other", "torch-cuda", _python(TINY_GENERATE), Says("generated"),
                 trained=False),
        Workload("transformer", "transformer", _python(GENERATE), Says("generated")),
    )
}  # fmt: skip

SMALL = [name for name in WORKLOADS if name not in ("torch", "torch-other", "transformer")]


def trained_workload(image: str) -> Workload:
    """Return the workload that an image's profile is recorded from."""
    return next(one for one in WORKLOADS.values() if one.image == image and one.trained)
