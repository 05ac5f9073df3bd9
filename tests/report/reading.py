"""How the tests read a page: a strict parser, a browser that is offline, and strings that mean harm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

from playwright.sync_api import Browser, Page

from norm_fusion.report import panels

WORDS = ("ink", "muted", "alert", "good", "bad")  # colours that words have
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1360, "height": 900}
# A page that closes its script, one that breaks out of an attribute, one that is an image, and Vega's own hooks.
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
    "</noscript></title></style><script>window.hacked = 1</script>",
    "<!--<script>{{ 7 * 7 }}{% raw %}${alert(4)}|a|b'],alert(5),['",
    "javascript:alert(6)//\u2028https://example.com/x.js",
)
# What the bundled libraries name and never ask for: XML namespaces, schema names, a link in an error message.
NAMED = ("http://www.w3.org/", "https://vega.github.io/", "https://github.com/vega/vega-lite/issues/")


class Reader(HTMLParser):
    """What a strict reader finds: tags left open, ids used twice, headings in order, tables without a caption."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag == "th" and "scope" not in dict(attrs):
            self.faults.append(f"th without a scope at {self.getpos()}")
        if self.open and self.open[-1] == "table" and tag in ("thead", "tbody"):
            self.faults.append(f"table without a caption at {self.getpos()}")
        if tag == "caption":
            self.open[-1] = "table with caption"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop().split()[0] != tag:
            self.faults.append(f"</{tag}> closes nothing at {self.getpos()}")


@contextmanager
def opened(browser: Browser, path: Path, **context: object) -> Iterator[Page]:
    """The page in a browser that is offline; anything it says, asks for or shows as a dialog is a failure."""
    with browser.new_context(**{"viewport": DESK, "offline": True, **context}) as made:
        reader = made.new_page()
        reader.set_default_timeout(10_000)
        said: list[str] = []
        reader.on("console", lambda message: said.append(f"console {message.type}: {message.text}"))
        reader.on("pageerror", lambda error: said.append(f"error: {error}"))
        reader.on("request", lambda request: said.append(f"request: {request.url}"))
        reader.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        reader.goto(path.as_uri())
        if context.get("java_script_enabled", True):
            plots = reader.locator(".plot").count()
            reader.wait_for_function("n => document.querySelectorAll('.plot svg').length === n", arg=plots)
        yield reader
        assert said == [f"request: {path.as_uri()}"]


def texts(reader: Page, selector: str) -> list[str]:
    return [" ".join(text.split()) for text in reader.locator(selector).all_inner_texts()]


def plot(title: str) -> str:
    """The selector of a panel's plot."""
    return f"#plot-{next(i for i, panel in enumerate(panels.PANELS) if panel.title == title)}"


def drawn(reader: Page, selector: str) -> list[str]:
    """Texts of an SVG."""
    return reader.locator(selector).all_text_contents()
