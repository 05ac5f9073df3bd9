"""Train a small Llama with and without our norms, from the same weights on the same text, and compare.

    python examples/train.py                     # on a GPU if there is one, else a smaller model on the CPU
    python examples/train.py --compile           # both models through torch.compile
    python examples/train.py --json > train.json
    python examples/train.py --again train.json  # what that says

It trains on the bytes of this repository's licence. Each model has a process of its own, so that neither leaves
anything behind for the other: no memory, no compiled code. Needs `pip install transformers`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shlex
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import norm_fusion
from norm_fusion.cli.options import DEVICES, checked_device
from norm_fusion.measure import environment
from norm_fusion.measure.environment import Refused, resolve_device
from norm_fusion.records import Environment
from norm_fusion.report.table import machine
from norm_fusion.spec import SpecError

TEXT = Path(__file__).parents[1] / "LICENSE"
SHOWN = 11  # losses
UNTIMED = 5  # steps at the beginning, which compile and allocate
SIZES: dict[str, dict[str, int]] = {
    "cpu": {"hidden": 128, "layers": 4, "batch": 8, "length": 128, "steps": 100},
    "cuda": {"hidden": 1024, "layers": 12, "batch": 16, "length": 512, "steps": 300},
}


def small_llama(hidden: int, layers: int) -> LlamaForCausalLM:
    """Of bytes, with heads of 64, always from the same weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            max_position_embeddings=4096,
        )
    )


def batches(batch: int, length: int, steps: int, device: str) -> Any:
    """Pieces of the text, drawn at random, the same in every process."""
    text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(text) - length, (batch,), generator=draw)
        yield torch.stack([text[start : start + length] for start in starts.tolist()]).to(device)


def train(patched: bool, asked: argparse.Namespace) -> dict[str, Any]:
    """The losses, the seconds of a step and the peak of memory of one training run."""
    model = small_llama(asked.hidden, asked.layers).to(asked.device)
    report = str(norm_fusion.patch_model(model)) if patched else ""
    step_of = torch.compile(model) if asked.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    on_gpu = asked.device.startswith("cuda")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    losses: list[float] = []
    seconds: list[float] = []
    for tokens in batches(asked.batch, asked.length, asked.steps, asked.device):
        start = time.perf_counter()
        with torch.autocast(asked.device.partition(":")[0], torch.bfloat16, enabled=on_gpu):
            loss = step_of(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the step
        seconds.append(time.perf_counter() - start)
    if on_gpu:
        peak = torch.cuda.max_memory_allocated(asked.device)
    else:  # what the process grew by
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"report": report, "losses": losses, "step_s": statistics.median(seconds[UNTIMED:]), "peak_bytes": peak}


def apart(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """`train` in a process of its own."""
    start = time.perf_counter()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        found = fresh.submit(train, name == "patched", asked).result()
    print(f"{name}: {asked.steps} steps, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return found


def told(made: dict[str, Any]) -> str:
    """The machine, losses side by side, time and memory."""
    asked, original, patched = made["asked"], made["original"], made["patched"]
    where = Environment.model_validate(made["environment"])
    lines = [
        machine(where).plain,
        f"Llama, {asked['layers']} layers of {asked['hidden']}, {asked['batch']} x {asked['length']} bytes a step"
        f"{', compiled' if asked['compile'] else ''}",
        patched["report"],
        "",
        f"{'step':>8} {'original':>10} {'patched':>10}",
    ]
    last = asked["steps"] - 1
    for step in sorted({round(i * last / (SHOWN - 1)) for i in range(SHOWN)}):
        lines.append(f"{step + 1:>8} {original['losses'][step]:>10.4f} {patched['losses'][step]:>10.4f}")
    ratio = f"{original['step_s'] / patched['step_s']:.2f}x"
    if where.device == "cpu":
        ratio = "on a CPU, which says nothing about the kernels"
    lines += ["", f"{'a step':>8} {_ms(original):>10} {_ms(patched):>10}   {ratio}"]
    lines += [f"{'memory':>8} {_mib(original):>10} {_mib(patched):>10}   at its peak"]
    return "\n".join(lines)


def _ms(found: dict[str, Any]) -> str:
    return f"{found['step_s'] * 1e3:.1f} ms"


def _mib(found: dict[str, Any]) -> str:
    return f"{found['peak_bytes'] / 2**20:,.0f} MiB"


def device(name: str) -> str:
    """For argparse, as the lab's --device."""
    try:
        return str(resolve_device(checked_device(name)))
    except (SpecError, Refused) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device, default="auto", help=DEVICES)
    parser.add_argument("--compile", action="store_true", help="train torch.compile(model)")
    parser.add_argument("--json", action="store_true", help="print every loss and figure as JSON instead")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run nothing, print what --json wrote to FILE")
    for name, of_gpu in SIZES["cuda"].items():
        more = f", more than {UNTIMED}" if name == "steps" else ""
        default = f"{SIZES['cpu'][name]} on a CPU, {of_gpu} on a GPU by default{more}"
        parser.add_argument(f"--{name}", type=int, help=default)
    asked = parser.parse_args()
    if asked.again:
        print(told(json.loads(asked.again.read_bytes())))
        return
    for name, value in SIZES[asked.device.partition(":")[0]].items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    if asked.steps <= UNTIMED:
        parser.error(f"--steps {asked.steps}: more than {UNTIMED} are needed, the first {UNTIMED} are not timed")
    bytes_there = TEXT.stat().st_size
    if not 1 < asked.length < bytes_there:
        parser.error(f"--length {asked.length}: the text has {bytes_there:,} bytes, choose 2 to {bytes_there - 1}")
    for name in ("batch", "layers"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name} {getattr(asked, name)}: at least 1")
    if asked.hidden < 64 or asked.hidden % 64:
        parser.error(f"--hidden {asked.hidden}: heads have 64 dimensions, choose a multiple of 64")
    made = {
        "command": shlex.join(["python", "examples/train.py", *sys.argv[1:]]),
        "asked": {name: value for name, value in vars(asked).items() if name not in ("json", "again")},
        **{name: apart(name, asked) for name in ("original", "patched")},
        "environment": environment.describe(torch.device(asked.device)).model_dump(mode="json"),
    }
    print(json.dumps(made) if asked.json else told(made))


if __name__ == "__main__":
    main()
