"""Joining a Ray cluster: can it be reached, is it ours alone, does it take us? Each refusal is a sentence. No torch."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from norm_fusion.records import first_line
from norm_fusion.spec import SpecError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
REACH_S = 5.0  # to answer at all
JOIN_S = 30.0  # to let us join


def joined(address: str) -> Any:
    """Ray, connected to the cluster at that address.

    Raises:
        SpecError: it cannot be reached, refuses us, or runs another Ray or Python.
    """
    try:
        _checked(address)
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
    except ModuleNotFoundError as missing:
        raise SpecError(f"a cluster needs {missing.name}: install norm-fusion[cluster]") from None
    failed = _join(ray, address)
    if failed is not None:
        raise SpecError(_refusal(address, failed))
    return ray


def _join(ray: Any, address: str) -> Exception | None:
    """Join, or say why not. Ray tries for minutes where nobody of its kind answers: in a thread that can be left."""
    found: list[Exception | None] = []

    def join() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
            found.append(None)
        except Exception as error:  # noqa: BLE001 - Ray raises what its layers do
            found.append(error)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(JOIN_S)
    return found[0] if found else TimeoutError(f"no answer of a Ray head within {JOIN_S:.0f} s")


def _checked(address: str) -> None:
    """Can it be reached, and is it ours alone?"""
    if "://" in address:
        raise SpecError(
            f"--address (or RAY_ADDRESS) {address!r}: leave out what stands before ://, and give the port of Ray's "
            "head: HOST:PORT"
        )
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise SpecError(f"--address (or RAY_ADDRESS) {address!r} is not HOST:PORT: write it like 10.0.0.4:6379")
    if host in LOOPBACK:
        # A plain ray.init() would write a token, and turn authentication on for every later head of this machine.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # And Ray puts this machine's outer address in the place of loopback, where a head on loopback does not listen,
        # but where clusters are switched off by this, whose name is of where they are so from the start.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        raise SpecError(
            f"the cluster at {address} is not on this machine: join it with a token, RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH=FILE, as its nodes were started with (see cluster/README.md)"
        )
    if (problem := unreachable(host, int(port))) is not None:
        raise SpecError(f"the cluster at {address} cannot be reached: {problem}; is its head up, is the port open?")


def unreachable(host: str, port: int) -> str | None:
    """Why nobody answers there; None where somebody does."""
    try:
        with socket.create_connection((host, port), timeout=REACH_S):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _refusal(address: str, error: BaseException) -> str:
    """Why we could not join, and what to do. What Ray raises last says the least: its causes say more."""
    said = [error]
    while said[-1].__cause__ is not None:
        said.append(said[-1].__cause__)
    text = " ".join(str(one) for one in said)
    if "ersion mismatch" in text:
        lines = " ".join(text.split())
        return f"the cluster at {address} runs another Ray or Python than this: {lines[:300]}; install the same on both"
    if any(word in text.lower() for word in ("token", "unauthenticated", "authentication")):
        return (
            f"the cluster at {address} refuses us: {first_line(said[-1])}; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to the file with the token that its nodes were started with"
        )
    node = (
        f"`ray start --address={address} --num-cpus=0 --num-gpus=0` makes this machine one of its nodes, as it must be"
    )
    ray_s = f"is what answers at {address} the head of a Ray cluster? If it is"
    return f"the cluster at {address} cannot be joined: {first_line(said[-1])}; {ray_s}, {node}"
