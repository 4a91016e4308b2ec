"""Adapt the names in a weights file to those of a network: prefixes of wrappers, old names, and a replaced head."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

WRAPPER_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that torch.compile, FSDP and activation checkpointing insert, at any depth."""

COUNTER_SUFFIX = "num_batches_tracked"
"""A counter of batch norm that evaluation does not use; files written before torch 0.4.1 do not have it."""

UNUSED_SUFFIXES = ("total_ops", "total_params")
"""Counters that profilers leave in state dicts."""

DENSENET_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
"""The dotted names of the official DenseNet files; torchvision joins both parts when it loads them."""

MAX_LISTED_KEYS = 3


@dataclass(frozen=True)
class KeyProblems:
    """The names in a weights file that do not match those of a network."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    """Names with both shapes."""

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def __str__(self) -> str:
        groups = {"missing": self.missing, "unexpected": self.unexpected, "wrong shape": self.mismatched}
        return "; ".join(list_keys(problem, names) for problem, names in groups.items() if names)


def list_keys(problem: str, names: Collection[str]) -> str:
    """Return the number of names with a problem, and the first of them: `4 missing: a, b, c and 1 more`."""
    listed, rest = list(names)[:MAX_LISTED_KEYS], len(names) - MAX_LISTED_KEYS
    return f"{len(names)} {problem}: {', '.join(listed)}" + (f" and {rest} more" if rest > 0 else "")


def find_key_problems(
    model: nn.Module, weights: Mapping[str, Tensor], missing: Collection[str], unexpected: Collection[str]
) -> KeyProblems:
    """Return the problems among missing and unexpected names, without those of counters, and the wrong shapes."""
    expected = model.state_dict()
    shapes = {
        name: (list(tensor.shape), list(expected[name].shape))
        for name, tensor in weights.items()
        if name in expected and tensor.shape != expected[name].shape
    }
    return KeyProblems(
        tuple(name for name in sorted(missing) if not name.endswith(COUNTER_SUFFIX)),
        tuple(name for name in sorted(unexpected) if not name.endswith((COUNTER_SUFFIX, *UNUSED_SUFFIXES))),
        tuple(f"{name} {found} instead of {needed}" for name, (found, needed) in shapes.items()),
    )


def adapt_names(weights: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Return the weights with the names of the network: without wrappers, old names and the common prefix.

    `expected` are the names of the network. If they all exist under one prefix, tensors outside it are left out: they
    belong to other parts of the training, such as a loss.
    """
    renamed = {rename_old(remove_wrappers(name), expected): tensor for name, tensor in weights.items()}
    prefix = find_prefix(renamed, expected)
    if not prefix:
        return renamed
    inside = {name.removeprefix(prefix): tensor for name, tensor in renamed.items() if name.startswith(prefix)}
    required = {name for name in expected if not name.endswith(COUNTER_SUFFIX)}
    if required <= inside.keys():
        return inside
    return inside | {name: tensor for name, tensor in renamed.items() if not name.startswith(prefix)}


def remove_wrappers(name: str) -> str:
    """Remove the segments of wrappers, which can be at any depth."""
    return ".".join(segment for segment in name.split(".") if segment not in WRAPPER_SEGMENTS)


def rename_old(name: str, expected: Collection[str]) -> str:
    """Join the dotted names of old DenseNet files, unless the network has them."""
    match = None if name in expected else DENSENET_NAME.match(name)
    return match.group(1) + match.group(2) if match else name


def find_prefix(names: Collection[str], expected: Collection[str]) -> str:
    """Return the prefix without which most names are those of the network; "" if the names match best as they are.

    The first one in the file is preferred among equals.
    """
    counts: Counter[str] = Counter({"": 0})
    for name in names:
        segments = name.split(".")
        for start in range(len(segments)):
            if ".".join(segments[start:]) in expected:
                counts["".join(f"{segment}." for segment in segments[:start])] += 1
    return max(counts, key=lambda prefix: counts[prefix])


def rename_head(weights: Mapping[str, Tensor], head: str, in_features: int) -> dict[str, Tensor]:
    """Rename the only linear layer of a head in a Sequential, such as `fc.1`, to the name of the network's head.

    `in_features` is the number of its inputs. Heads with several layers are not renamed: their activations are not in
    the file.
    """
    if f"{head}.weight" in weights:
        return dict(weights)
    parent = head.partition(".")[0]
    inside = [name for name in weights if name.startswith(f"{parent}.") and weights[name].ndim == 2]
    if len(inside) != 1 or weights[inside[0]].shape[1] != in_features:
        return dict(weights)
    old = inside[0].removesuffix(".weight")
    return {
        f"{head}.{name.removeprefix(old + '.')}" if name.startswith(f"{old}.") else name: tensor
        for name, tensor in weights.items()
    }
