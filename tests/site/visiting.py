"""How the tests visit a site: offline, from its files, noting whatever a page says or asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from playwright.sync_api import Browser, Page

DESK, PHONE = {"width": 1360, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def visited(browser: Browser, site: Path, name: str, after: str = "", **context: object) -> Iterator[Page]:
    """A page of the site, at an address that goes on with `after`.

    A word on its console, a dialog, or a request for anything but the site's files fails.
    """
    with browser.new_context(**{"viewport": DESK, "offline": True, **context}) as made:
        page = made.new_page()
        page.set_default_timeout(20_000)
        said: list[str] = []
        page.on("console", lambda message: said.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / name).as_uri() + after)
        yield page
        assert said == []
        assert [url for url in asked if not url.startswith(f"{site.as_uri()}/")] == []


def draw_all(page: Page) -> int:
    """Bring each plot into sight, and wait until it is drawn; how many there are."""
    plots = page.locator(".plot")
    for i in range(plots.count()):
        plots.nth(i).scroll_into_view_if_needed()
    page.wait_for_function(
        "document.querySelectorAll('.plot').length === document.querySelectorAll('.plot svg').length"
    )
    return plots.count()


class Links(HTMLParser):
    """Where a page and the marks of its plots lead, and what in it can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.to, self.ids, self.specs = path, set[str](), set[str](), False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.specs = ("id", "specs") in attrs
        for name, value in attrs:
            if name in ("href", "src", "srcset") and value:
                self.to.add(value)
            if name == "id" and value:
                self.ids.add(value)

    def handle_data(self, data: str) -> None:
        if self.specs:
            self.to |= {to for to in leads(json.loads(data)) if isinstance(to, str)}
            self.specs = False


def leads(spec: object) -> Iterator[object]:
    """Every `href` in it: of marks the address, of an encoding the field."""
    if isinstance(spec, dict):
        yield from (to for key, to in spec.items() if key == "href")
    for part in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ():
        yield from leads(part)


def dead_links(site: Path) -> list[str]:
    """Every link of every page that leads to no file of the site, or to no place in it."""
    pages = {path.resolve(): Links(path) for path in site.rglob("*.html")}
    dead = []
    for path, links in pages.items():
        for link in links.to:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            where = f"{path.relative_to(site.resolve())}: {link}"
            if parts.scheme or parts.netloc:
                dead.append(f"{where} leads out of the site")
            elif not target.is_file() or site.resolve() not in target.parents:
                dead.append(f"{where} leads to no file")
            elif target.parent.name == "compare" and "=" in parts.fragment:
                pair = parse_qs(parts.fragment)
                dead += [
                    f"{where} names no run" for name in "ab" if not (target.parent / f"{pair[name][0]}.js").is_file()
                ]
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                dead.append(f"{where} leads to no place there")
    return dead
