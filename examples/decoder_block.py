"""One decoder block of a Llama or Qwen3, eager and compiled, with and without our norms: is patching worth it?

    python examples/decoder_block.py                       # Llama-3-8B's block, 4,096 tokens, on a GPU
    python examples/decoder_block.py --model qwen3 --tokens 512 --backward
    python examples/decoder_block.py --device cpu --hidden 256 --tokens 64 --processes 2   # only to see it run
    python examples/decoder_block.py --json > block.json; python examples/decoder_block.py --again block.json

To torch.compile our norms are opaque: it compiles around them, and can no longer fuse one with the residual's addition
before it. What that costs, or gains, is what this measures, with the lab's own clocks: contestants take turns in
balanced rounds, in fresh processes; speedups are of paired rounds, which on a noisy machine need not be the ratio of
the medians beside them, and have 95% intervals over processes. Needs `pip install transformers`.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import random
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, Qwen3Config

import norm_fusion
from norm_fusion.cli.options import DEVICES, checked_device
from norm_fusion.measure import environment, graphs, timing
from norm_fusion.measure.environment import Refused, resolve_device
from norm_fusion.measure.ring import Contestant, Ring
from norm_fusion.metrics import geometric_mean, interval, percentile, speedup
from norm_fusion.records import Environment
from norm_fusion.report.table import machine
from norm_fusion.spec import EFFORTS, SpecError

CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}
INPUTS = 4
WAYS = ("eager", "compiled")
NAMES = ("original", "patched")
CALLED = {"graph": "in a CUDA graph", "wall": "one call, waited for"}
SERIES = {"cuda": ("graph", "wall"), "cpu": ("wall",)}


class Block(nn.Module):
    """A decoder layer with random weights, as a function of the hidden states, shape (1, tokens, hidden)."""

    def __init__(self, asked: argparse.Namespace) -> None:
        super().__init__()
        config = CONFIGS[asked.model](
            vocab_size=256,
            num_hidden_layers=1,
            hidden_size=asked.hidden,
            intermediate_size=7 * asked.hidden // 2,
            num_attention_heads=max(1, asked.hidden // 128),
            num_key_value_heads=max(1, asked.hidden // 512),
            head_dim=128,
            max_position_embeddings=asked.tokens,
        )
        whole = AutoModel.from_config(config, attn_implementation="sdpa").to(asked.device, torch.bfloat16)
        self.layer = whole.layers[0]
        positions = torch.arange(asked.tokens, device=asked.device)[None]
        like = torch.empty(1, device=asked.device, dtype=torch.bfloat16)
        self.cos, self.sin = whole.rotary_emb(like, positions)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, position_embeddings=(self.cos, self.sin), attention_mask=None)
        return y


def contestants(asked: argparse.Namespace) -> tuple[dict[str, Block], dict[str, Any]]:
    """The blocks, of the same weights, and from a name to a function of the hidden states."""
    torch.manual_seed(0)
    blocks = {"original": Block(asked)}
    blocks["patched"] = copy.deepcopy(blocks["original"])
    norm_fusion.patch_model(blocks["patched"])
    launches = {}
    for name, block in blocks.items():
        for way in WAYS:
            run = torch.compile(block, dynamic=False) if way == "compiled" else block
            launches[f"{way}, {name}"] = _training(run, block) if asked.backward else run
    return blocks, launches


def _training(run: Any, block: Block) -> Any:
    """Forward and backward in one call: the gradients of input and weights, of a gradient of ones."""
    weights = list(block.parameters())

    def launch(x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = run(x)
            return torch.autograd.grad(y, [x, *weights], torch.ones_like(y))

    return launch


def errors(blocks: dict[str, Block], x: Tensor) -> dict[str, float]:
    """Each block's largest error against the original in fp32, relative to the largest element."""
    exact = copy.deepcopy(blocks["original"]).float()
    exact.cos, exact.sin = exact.cos.float(), exact.sin.float()
    with torch.no_grad():
        right = exact(x.float())
        return {
            name: float((block(x).float() - right).abs().max() / right.abs().max()) for name, block in blocks.items()
        }


def measure(asked: argparse.Namespace, replicate: int) -> dict[str, Any]:
    """One process: samples of each series, by contestant, and the errors."""
    torch.manual_seed(1 + replicate)
    inputs = [torch.randn(1, asked.tokens, asked.hidden, device=asked.device).bfloat16() for _ in range(INPUTS)]
    blocks, launches = contestants(asked)
    device = torch.device(asked.device)
    kind = device.type
    ring = Ring(
        [Contestant(name, launch, judged=False) for name, launch in launches.items()],
        inputs,
        EFFORTS[kind, asked.quick],
        random.Random(replicate),
        lambda: False,
        cache_bytes=environment.describe(device).cache_bytes if kind == "cuda" else 0,
    )
    ring.rng.shuffle(ring.contestants)
    with torch.no_grad():
        found = errors(blocks, inputs[0])
        for contestant in ring.contestants:
            contestant.call(inputs)  # compiles
        for series in SERIES[kind]:
            if series == "graph":
                graphs.capture(ring)
                graphs.graph(ring)
            else:
                timing.wall(ring)
    blocks_of = {
        series: {c.name: c.series[series, "cold"].blocks for c in ring.contestants if (series, "cold") in c.series}
        for series in SERIES[kind]
    }
    notes = [note for contestant in ring.contestants for note in contestant.notes]
    return {"samples": blocks_of, "errors": found, "notes": notes}


def compared(runs: list[dict[str, Any]], series: str, way: str) -> dict[str, Any] | None:
    """Patched against original: medians, the speedup and its interval. None where one was not captured."""
    pairs = [tuple(run["samples"][series].get(f"{way}, {name}") for name in NAMES) for run in runs]
    if any(one is None for pair in pairs for one in pair):
        return None
    ratios = [speedup(*pair) for pair in pairs]
    p50 = [geometric_mean([percentile(pair[i], 50) for pair in pairs]) for i in range(len(NAMES))]
    return {
        "p50_ms": p50,
        "speedup": geometric_mean(ratios),
        "interval": interval(ratios) if len(ratios) > 1 else None,
    }


def told(made: dict[str, Any]) -> str:
    """The machine, the medians, and patched over original, of each series and way."""
    asked, runs = made["asked"], made["runs"]
    what = "forward and backward" if asked["backward"] else "forward"
    lines = [
        machine(Environment.model_validate(made["environment"])).plain,
        f"{asked['model']} block, hidden {asked['hidden']}, {asked['tokens']} tokens, bfloat16, {what}, "
        f"{len(runs)} process{'es' if len(runs) > 1 else ''}",
    ]
    for series in runs[0]["samples"]:
        lines += ["", f"{CALLED[series]:<22}{'original':>12}{'patched':>12}   patched is"]
        for way in WAYS:
            found = compared(runs, series, way)
            if found is None:
                lines.append(f"  {way:<20} not captured: see the notes")
                continue
            original, patched = found["p50_ms"]
            span = "" if found["interval"] is None else " [{:.3f}, {:.3f}]".format(*found["interval"])
            lines.append(f"  {way:<20}{original:>9.3f} ms{patched:>9.3f} ms   {found['speedup']:.3f}x{span}")
    off = ", ".join(f"{name} {error:.1e}" for name, error in runs[0]["errors"].items())
    lines += ["", f"largest error against fp32, of the largest element: {off}"]
    lines += sorted({note for run in runs for note in run["notes"]})
    return "\n".join(lines)


def apart(asked: argparse.Namespace, replicate: int) -> dict[str, Any]:
    """`measure` in a fresh process."""
    start = time.perf_counter()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        found = fresh.submit(measure, asked, replicate).result()
    print(f"process {replicate + 1} of {asked.processes}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return found


def device(name: str) -> str:
    """For argparse, as the lab's --device."""
    try:
        return str(resolve_device(checked_device(name)))
    except (SpecError, Refused) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, default="llama", help="qwen3 normalizes queries and keys, too")
    parser.add_argument("--hidden", type=int, default=4096, help="a multiple of 128")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--backward", action="store_true", help="time forward and backward, not forward alone")
    parser.add_argument("--processes", type=int, default=5, help="one has no intervals")
    parser.add_argument("--quick", action="store_true", help="as the lab's --quick: fewer samples")
    parser.add_argument("--device", type=device, default="auto", help=DEVICES)
    parser.add_argument("--json", action="store_true", help="print every sample as JSON instead")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run nothing, print what --json wrote to FILE")
    asked = parser.parse_args()
    if asked.again:
        print(told(json.loads(asked.again.read_bytes())))
        return
    if asked.hidden % 128 or asked.hidden < 128:
        parser.error(f"--hidden {asked.hidden}: heads have 128 dimensions, choose a multiple of 128")
    for name in ("tokens", "processes"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name} {getattr(asked, name)}: at least 1")
    made = {
        "command": shlex.join(["python", "examples/decoder_block.py", *sys.argv[1:]]),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "asked": {name: value for name, value in vars(asked).items() if name not in ("json", "again")}
        | {"dtype": "bfloat16"},
        "runs": [apart(asked, replicate) for replicate in range(asked.processes)],
        "environment": environment.describe(torch.device(asked.device)).model_dump(mode="json"),
    }
    print(json.dumps(made) if asked.json else told(made))


if __name__ == "__main__":
    main()
