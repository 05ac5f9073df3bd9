"""Why a cluster does not take us, in words: what Ray raises last says the least."""

import socket
import threading

import pytest

from norm_fusion.engine import joining
from norm_fusion.spec import SpecError


def raised(*texts: str) -> Exception:
    """An error whose causes say these, the first raised first."""
    made = RuntimeError(texts[0])
    for text in texts[1:]:
        last, made = made, ConnectionError(text)
        made.__cause__ = last
    return made


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["InvalidAuthToken: Token is wrong", "Failed to connect to Ray cluster"], "refuses us: .*InvalidAuthToken"),
        (["no authentication token was found"], "refuses us: .*RAY_AUTH_TOKEN_PATH"),
        (["Version mismatch: Ray: 2.9.0\n  This process has Ray: 2.60.0"], "another Ray or Python .* install the same"),
        (
            ["No node info found matching attributes", "Failed to connect"],
            "No node info found.*ray start --address=h:1",
        ),
        (["something else"], "cannot be joined: RuntimeError: something else"),
    ],
)
def test_a_refusal_is_a_sentence(texts: list[str], says: str) -> None:
    import re

    assert re.search(says, joining._refusal("h:1", raised(*texts)))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nowhere", "is not HOST:PORT: write it like 10.0.0.4:6379"),
        ("host:port", "is not HOST:PORT"),
        ("auto", "is not HOST:PORT"),
        ("ray://10.0.0.4:10001", "leave out what stands before ://"),
        ("10.0.0.4:6379", "is not on this machine: join it with a token"),
    ],
)
def test_an_address_that_may_not_be_joined(monkeypatch: pytest.MonkeyPatch, address: str, says: str) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(SpecError, match=says):
        joining._checked(address)


def test_nobody_there_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in str(joining.unreachable("127.0.0.1", port))
    with pytest.raises(SpecError, match=f"127.0.0.1:{port} cannot be reached: Connection refused; is its head up"):
        joining._checked(f"127.0.0.1:{port}")


def test_a_ray_that_never_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "JOIN_S", 0.2)
    never = threading.Event()

    class Ray:
        @staticmethod
        def init(**asked: object) -> None:
            never.wait(30)

    error = joining._join(Ray, "127.0.0.1:1")
    never.set()
    assert "no answer of a Ray head within 0 s" in str(error)
