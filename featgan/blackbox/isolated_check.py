"""`python -m featgan.blackbox.isolated_check REQUEST DESCRIPTOR`: open the file of a SPEC and run it on one image.

`featgan.blackbox.isolation` starts this process. The result is one line of JSON, written to the file descriptor.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featgan.blackbox.adapters.base import NUM_PROBE_IMAGES, NetworkAdapter, summarize_error
from featgan.blackbox.adapters.onnx import OnnxAdapter
from featgan.blackbox.adapters.torchscript import TorchScriptAdapter
from featgan.blackbox.isolation import GIBIBYTES_VARIABLE
from featgan.blackbox.spec import BlackBoxSpec, parse_spec
from featgan.errors import UserError
from featgan.system.json_files import parse_json
from featgan.system.worker_processes import end_with_parent

OPENERS: dict[str, Callable[[BlackBoxSpec, torch.device], NetworkAdapter]] = {
    "torchscript": TorchScriptAdapter,
    "onnx": OnnxAdapter,
}

PROBE_IMAGE_SIZE = 112
"""Width and height of the image in pixels, if the network does not define its input size."""

MEMORY_ERRORS = ("allocate", "bad_alloc", "bad allocation", "out of memory", "memoryerror")
"""Parts of the messages of the runtimes about missing memory, in lower case."""


def set_limits(seconds: float, memory: int, threads: int) -> None:
    """Limit this process: `memory` bytes beyond those in use, `seconds` for each thread, and no written bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    address_space = int(status["VmSize"].split()[0]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = int(used.ru_utime + used.ru_stime + seconds * max(1, threads)) + 1
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, end this process first
    for kind, limit in (
        (resource.RLIMIT_AS, address_space + memory),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard_limit = resource.getrlimit(kind)[1]
        allowed = limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit)
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (allowed, allowed))


def check_model(spec: BlackBoxSpec) -> dict[str, Any]:
    """Open the file and run it on one image; return the status of the check and the files that were read."""
    try:
        network = OPENERS[spec.kind](spec, torch.device("cpu"))
        preprocessing = network.preprocessing.with_options(spec.preprocessing, spec.name)
    except UserError as error:
        return memory_result(spec, error) or {"status": "rejected", "message": str(error)}
    size = preprocessing.image_size or PROBE_IMAGE_SIZE
    images = preprocessing(torch.rand(NUM_PROBE_IMAGES, 3, size, size) * 2 - 1)
    first_error: UserError | None = None
    for batch in (images[:1], images):  # the batch size can be fixed in the file
        try:
            run_network(network, batch)
        except UserError as caught:
            first_error = first_error or caught
        else:
            return {"status": "completed", "files": getattr(network, "external_files", {})}
    assert first_error is not None
    return memory_result(spec, first_error) or {"status": "failed"}


def run_network(network: NetworkAdapter, images: Tensor) -> None:
    """Run the whole network, with any selected output; raises UserError if it cannot run on these images."""
    if isinstance(network, TorchScriptAdapter):
        network.call_function(network.build_function([]), images)
    else:
        network.compute_outputs(images)


def memory_result(spec: BlackBoxSpec, error: BaseException) -> dict[str, str] | None:
    """Return the result for an error about missing memory; None for another error."""
    text = f"{type(error).__name__}: {error}".lower()
    if not any(part in text for part in MEMORY_ERRORS):
        return None
    message = (
        f"{spec.name}: needs too much memory to process one image in a separate process "
        f"({summarize_error(error.__cause__ or error)}); "
        f"if the network is very large, set {GIBIBYTES_VARIABLE} to more GiB"
    )
    return {"status": "rejected", "message": message}


def run_check(request: dict[str, Any]) -> dict[str, Any]:
    """Return the result of the check that is described in the request."""
    spec = parse_spec(request["spec"])
    try:
        return check_model(spec)
    except MemoryError as error:
        result = memory_result(spec, error)
        assert result is not None
        return result


def main(request: dict[str, Any], descriptor: int) -> None:
    """Write `ready` when the limits apply, and then the result."""
    end_with_parent(request["parent"])
    torch.set_num_threads(request["threads"])
    set_limits(request["seconds"], request["memory"], request["threads"])
    os.write(descriptor, b"ready\n")
    os.write(descriptor, json.dumps(run_check(request)).encode() + b"\n")
    os._exit(0)  # the destructors of a damaged runtime can wait forever


if __name__ == "__main__":
    main(parse_json(sys.argv[1]), int(sys.argv[2]))
