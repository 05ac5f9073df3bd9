"""Judges the GPU: whether there is one, whether PyTorch can use it, and what its state means for noise.

Nothing here changes a card's settings, and the lab never does: what a remedy changes, a person changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from norm_fusion.doctor.finding import Finding, dotted, gib, limited, missing, ok, unknown
from norm_fusion.doctor.probe import Step
from norm_fusion.nvml import Card, Nvml, Process, reason_names

TESTED = ((8, 0), (8, 6), (9, 0), (10, 0))  # compiled ahead of time in the tests
IDLE, SET = 0x1, 0x2
# Two sets of the largest default case and its outputs, with room for what a compiler's autotuning allocates.
ENOUGH_BYTES = 4 * 2**30
NEAR_SLOWDOWN_C = 5
HOT_C = 85
NOISE = "labels may come out 'rerun noise' or 'inconclusive'"


def judge_driver(nvml: Nvml, module: str | None) -> Finding:
    """`module`: what /proc/driver/nvidia/version says, None where no module is loaded."""
    if nvml.problem is None:
        newest = f", for CUDA up to {dotted(nvml.cuda)}" if nvml.cuda else ""
        return ok("driver", f"{nvml.driver or 'of unknown version'}{newest}")
    unread = "clocks, temperature, power and company cannot be read: runs record them as unknown"
    if not nvml.bindings:
        return limited("driver", f"cannot be asked: {nvml.problem}", unread, "pip install nvidia-ml-py")
    if module is not None:
        return limited(
            "driver",
            f"the kernel module is loaded, and NVML fails: {nvml.problem}",
            unread,
            "in a container: start it with NVIDIA_DRIVER_CAPABILITIES=compute,utility; "
            "after an update of the driver: restart the machine",
        )
    return missing("driver", f"no NVIDIA driver: {nvml.problem}")


def judge_gpu(
    asked: str, torch: Step | None, device: Step | None, nvml: Nvml, module: str | None, visible: str | None
) -> Finding:
    """Is there a GPU to measure on, and if not: which of the many reasons is it?

    `visible` is CUDA_VISIBLE_DEVICES, None where it is not set.
    """
    gpus = device.facts.get("gpus") or [] if device else []
    resolved = device.facts.get("resolved") if device else None
    if gpus and resolved is not None:
        return ok("GPU", f"{resolved}: {_described(gpus[int(str(resolved).partition(':')[2] or 0)])}")
    means = "the device, graph and host series need an NVIDIA GPU" + (
        "" if asked == "auto" else f"; nothing can be measured on {asked}"
    )
    cards = [card.name or f"card {card.index}" for card in nvml.cards]
    if gpus:
        have = ", ".join(f"cuda:{i}" for i in range(len(gpus)))
        return missing(
            "GPU", f"there is no {asked}: this machine has {have}", means, f"use --device {have.split(',')[0]}"
        )
    if torch is None or not torch.ok:
        seen = f"{', '.join(cards)}: PyTorch, which would use it, cannot be imported" if cards else "PyTorch cannot say"
        return missing("GPU", seen, means, "mend PyTorch first")
    cuda, hip = torch.facts.get("cuda"), torch.facts.get("hip")
    here = ", ".join(cards) or ("an NVIDIA driver" if module else "")
    if not cuda and not hip:
        if here:
            return missing(
                "GPU", f"{here} is here; PyTorch is built without CUDA", means, "install a CUDA build of torch"
            )
        return missing("GPU", "no GPU found; PyTorch is built without CUDA", means, "use a machine with an NVIDIA GPU")
    if visible is not None and hides(visible, nvml.cards):
        return missing(
            "GPU", f"CUDA_VISIBLE_DEVICES={visible!r} hides {here or 'all GPUs'}", means, "unset CUDA_VISIBLE_DEVICES"
        )
    if nvml.cuda and cuda and _major(cuda) > nvml.cuda[0]:
        return missing(
            "GPU",
            f"{here}: driver {nvml.driver} is too old: it serves CUDA up to {dotted(nvml.cuda)}, PyTorch wants {cuda}",
            means,
            f"update the driver, or install a build of torch for CUDA {nvml.cuda[0]}",
        )
    problem = device.facts.get("problem") or device.seen if device else "not tried"
    if here:
        return missing(
            "GPU",
            f"{here} is here, and PyTorch cannot use it: {problem}",
            means,
            "see whether `nvidia-smi` works; in a container, whether it was started with --gpus all",
        )
    return missing(
        "GPU",
        f"no GPU found: {problem}",
        means,
        "on a machine that has one: install NVIDIA's driver; in a container: start it with --gpus all",
    )


def hides(visible: str, cards: Sequence[Card]) -> bool:
    """Does CUDA_VISIBLE_DEVICES show no card at all? CUDA stops at the first entry that it does not know."""
    first = visible.partition(",")[0].strip()
    if first in ("", "-1"):
        return True
    if not cards or first.startswith("MIG-"):
        return False
    if first.isascii() and first.isdecimal():
        return int(first[:9]) >= len(cards)
    return not any(card.uuid and card.uuid.startswith(first) for card in cards)


def _major(version: Any) -> int:
    head = str(version).partition(".")[0]
    return int(head) if head.isascii() and head.isdecimal() else 0


def _described(gpu: dict[str, Any]) -> str:
    l2 = gpu.get("l2")
    facts = [gpu["name"], f"{gpu['sms']} SMs", gib(gpu["memory"])]
    return ", ".join([*facts, f"L2 {gib(l2)}"] if l2 else facts)


def judge_others(gpus: Sequence[dict[str, Any]], index: int) -> Finding:
    """The GPUs that are there and were not asked for."""
    rest = [f"cuda:{i} {gpu['name']}" for i, gpu in enumerate(gpus) if i != index]
    return ok("other GPUs", ", ".join(rest) or "none")


def judge_capability(major: int, minor: int) -> Finding:
    tested = ", ".join(dotted(pair) for pair in TESTED)
    if (major, minor) in TESTED:
        return ok("capability", f"{major}.{minor}: the kernels are compiled for it in the tests")
    return limited(
        "capability",
        f"{major}.{minor}: not tested",
        f"the tests compile the kernels for {tested}: here each result is verified, the launch choices are a guess",
        "trust the figures as far as their labels go; say so where you quote them",
    )


def card_of(gpu: dict[str, Any], cards: Sequence[Card]) -> Card | None:
    """The card that a GPU of PyTorch's is: by UUID, else (a MIG slice has its own) by its place on the PCI bus."""
    uuid, bus = gpu.get("uuid"), gpu.get("bus")
    for card in cards:
        if uuid and card.uuid and card.uuid.removeprefix("GPU-") == str(uuid).removeprefix("GPU-"):
            return card
    return next((card for card in cards if bus and card.bus == tuple(bus)), None)


def judge_card(card: Card) -> list[Finding]:
    """All that NVML says of the card in use."""
    return [
        judge_clocks(card),
        judge_throttling(card.reasons),
        judge_temperature(card.temperature, card.slowdown_at),
        judge_power(card.power_limit, card.power_limit_default),
        judge_modes(card.mig, card.ecc, card.persistence),
        judge_display(card.display),
        judge_card_memory(card.memory_free, card.memory_total),
    ]


def judge_clocks(card: Card) -> Finding:
    """NVML tells of application clocks; of clocks locked by `nvidia-smi -lgc` it does not."""
    now, most, chosen, usual = card.sm_clock, card.sm_clock_max, card.sm_clock_set, card.sm_clock_default
    if now is None or most is None:
        return unknown(
            "clocks", "not told", "what the clocks did during a run is not known; each series' clock probe still is"
        )
    memory = f", memory {card.memory_clock} of {card.memory_clock_max} MHz" if card.memory_clock is not None else ""
    seen = f"SM {now} of {most} MHz{memory}"
    if (card.reasons or 0) & SET or (chosen is not None and usual is not None and chosen != usual):
        return limited(
            "clocks",
            f"{seen}, held by an application setting" + (f" of {chosen} MHz" if chosen is not None else ""),
            "steady, and other than on cards left alone: figures hold for this setting",
            "keep it to compare on this card alone; to undo it, a person may: sudo nvidia-smi -rac",
        )
    return ok("clocks", f"{seen}; free as far as NVML tells: each series carries a clock probe")


def judge_throttling(bits: int | None) -> Finding:
    if bits is None:
        return unknown("throttling", "not told", "a power or thermal event during a run may go unseen")
    held = reason_names(bits & ~(IDLE | SET))
    if held:
        return limited(
            "throttling",
            ", ".join(held),
            f"the card holds itself back now: clocks move with it, and {NOISE}",
            "let it cool, or end what else draws power, and look again; a power cap is the card's owner's to change",
        )
    return ok("throttling", "none" + (" (idle)" if bits & IDLE else ""))


def judge_temperature(now: int | None, slowdown: int | None) -> Finding:
    """Degrees Celsius."""
    if now is None:
        return unknown("temperature", "not told", "a thermal event during a run may go unseen")
    limit = slowdown - NEAR_SLOWDOWN_C if slowdown is not None else HOT_C
    seen = f"{now} C" + (f", slows down at {slowdown} C" if slowdown is not None else "")
    if now >= limit:
        means = f"close to where clocks fall: {NOISE}"
        return limited("temperature", seen, means, "let the card cool; look at its fans and its air")
    return ok("temperature", seen)


def judge_power(limit: float | None, usual: float | None) -> Finding:
    """W."""
    if limit is None:
        return unknown("power limit", "not told", "whether the card is capped is not known")
    if usual is not None and limit < usual - 0.5:
        return limited(
            "power limit",
            f"{limit:.0f} W, this card's default is {usual:.0f} W",
            "figures hold for this limit: do not compare them with another card's",
            "ask the card's owner; by default: sudo nvidia-smi -pl " + f"{usual:.0f}",
        )
    return ok("power limit", f"{limit:.0f} W" + (", the default" if usual is not None else ""))


def judge_modes(mig: bool | None, ecc: bool | None, persistence: bool | None) -> Finding:
    words = {None: "not told", True: "on", False: "off"}
    seen = f"MIG {words[mig]}, ECC {words[ecc]}, persistence {words[persistence]}"
    if mig:
        return limited(
            "modes",
            seen,
            "this is a slice of a card: its L2, SMs and bandwidth are a part, and the neighbours' work is noise",
            "measure on a whole card, or quote the slice's name with each figure",
        )
    return ok("modes", seen)


def judge_display(active: bool | None) -> Finding:
    if active is None:
        return unknown("display", "not told", "a desktop on this card would be noise in every series")
    if active:
        return limited(
            "display",
            "a display is driven by this card",
            f"its desktop's work lies between the samples: {NOISE}",
            "log out of the desktop, use another card, or switch to a text console",
        )
    return ok("display", "none on this card")


def judge_card_memory(free: int | None, total: int | None) -> Finding:
    """Bytes, before this command's own probe."""
    if free is None or total is None:
        return unknown("GPU memory", "not told", "a case too large for it is found when it runs")
    seen = f"{gib(free)} of {gib(total)} free"
    if free < min(ENOUGH_BYTES, total // 2):
        return limited(
            "GPU memory",
            seen,
            "cases that do not fit end as 'failed', out of memory",
            "end what else holds the card's memory, or choose smaller shapes",
        )
    return ok("GPU memory", seen)


def judge_company(processes: Sequence[Process] | None, locks: Sequence[str], uuid: str | None) -> list[Finding]:
    """Others on the card: compute processes, and a run of this lab, which holds a lock by the card's UUID."""
    mine = [lock for lock in locks if uuid and uuid.removeprefix("GPU-") in lock]
    found = [ok("other runs", "none of this lab")]
    if mine:
        found = [
            limited(
                "other runs",
                f"a run of this lab holds {mine[0]}",
                "a run here is refused as long as that one measures",
                "wait until it ends",
            )
        ]
    if processes is None:
        means = "another program's kernels on this card would be noise in every series"
        return [unknown("company", "not told", means, "look at nvidia-smi"), *found]
    if not processes:
        return [ok("company", "no other compute process"), *found]
    listed = [
        f"{p.pid} {p.name or '(name not readable)'}" + (f" {gib(p.memory)}" if p.memory is not None else "")
        for p in processes[:4]
    ]
    more = [f"{len(processes) - 4} more"] if len(processes) > 4 else []
    return [
        limited(
            "company",
            ", ".join([*listed, *more]),
            f"they share SMs, L2 and bandwidth with what is measured: {NOISE}",
            "end them, or use a card of its own",
        ),
        *found,
    ]
