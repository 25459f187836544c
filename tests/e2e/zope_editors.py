"""People who edit and read a site's pages while its cluster loses nodes."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial

from tests.e2e.zope_site import ANSWER_SECONDS, Browser, Zope

#: The page that all edit: seldom, since two at once mean a conflict, and Zope tries a request only thrice again.
SHARED = "shared"
SHARED_EVERY = 3


def page_source(text: str) -> dict[str, str | list[str]]:
    """The fields that the ZMI's form for a page template sends."""
    source = f'<html><h1 tal:content="template/title">title</h1><p>{text}</p></html>'
    return {"title": f"title of {text}", "text": source, "content_type": "text/html"}


def shown(visitor: Browser, path: str) -> str:
    """The text of a page that was edited so; its title has to belong to it."""
    found = re.search("<h1>title of (.*)</h1><p>(.*)</p>", page := visitor.get(path).text)
    assert found, page
    assert found[1] == found[2], page
    return found[2]


def add_page(manager: Browser, folder: str, name: str, text: str) -> None:
    """Adds it as the ZMI's list of things to add does, and writes it."""
    manager.post(f"{folder}/manage_addProduct/PageTemplates/manage_addPageTemplate", {"id": name})
    manager.post(f"{folder}/{name}/pt_editAction", page_source(text))


class Editors:
    """`with Editors(zopes, folder, count)`: threads that each edit a page of their own, and now and then one page
    of all, through one Zope after the other, and look at once whether each Zope shows it; and one that only reads.

    Nothing is tried again here: an answer that is an error ends it, as `errors`. `edits`: how often each page was
    edited, as far as it was acknowledged. `longest`: seconds that the slowest edit took.
    """

    def __init__(self, zopes: Sequence[Zope], folder: str, count: int) -> None:
        self._zopes = zopes
        self._folder = folder
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self.errors: list[BaseException] = []
        self.longest = 0.0
        self.edits: dict[str, int] = {}
        self.readings = 0
        self._begun: dict[str, int] = {}
        names = [f"editor-{number}" for number in range(count)]
        for name in (*names, SHARED):
            add_page(zopes[0].manager, folder, name, f"{name} 0")
            self.edits[name] = self._begun[name] = 0
        self._latest = dict.fromkeys(names, f"{SHARED} 0")
        runs = [partial(self._edit, name) for name in names] + [partial(self._read, names)]
        self._threads = [threading.Thread(target=self._guard, args=(run,)) for run in runs]

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            with self._changed:
                self.errors.append(error)
                self._changed.notify_all()

    def _edit(self, name: str) -> None:
        for number in itertools.count(1):
            if self._stop.is_set():
                return
            zope = self._zopes[number % len(self._zopes)]
            self._begun[name] = number
            self._save(zope, name, f"{name} {number}")
            for each in self._zopes:
                assert shown(each.visitor, f"{self._folder}/{name}") == f"{name} {number}"
            if number % SHARED_EVERY == 0:
                text = f"{name} in all {number}"
                self._save(zope, SHARED, text)
                self._latest[name] = text

    def _save(self, zope: Zope, page: str, text: str) -> None:
        answer = zope.manager.post(f"{self._folder}/{page}/pt_editAction", page_source(text))
        assert "Saved changes." in answer.text
        with self._changed:
            self.edits[page] += 1
            self.longest = max(self.longest, answer.seconds)
            self._changed.notify_all()

    def _read(self, names: list[str]) -> None:
        for name, zope in itertools.cycle([(name, zope) for name in names for zope in self._zopes]):
            if self._stop.is_set():
                return
            least = self.edits[name]
            number = int(shown(zope.visitor, f"{self._folder}/{name}").rpartition(" ")[2])
            assert least <= number <= self._begun[name]
            self.readings += 1

    def __enter__(self) -> Editors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(3 * ANSWER_SECONDS)

    def more(self, count: int) -> None:
        """Waits for so many further edits of anybody's, from now on."""
        with self._changed:
            goal = self._total() + count
            self._changed.wait_for(lambda: self.errors or self._total() >= goal, ANSWER_SECONDS)
            assert not self.errors, self.errors
            assert self._total() >= goal, f"no progress for {ANSWER_SECONDS} s"

    def _total(self) -> int:
        return sum(self.edits.values())

    def check(self) -> None:
        """After the end: each Zope shows what was acknowledged last."""
        assert not any(thread.is_alive() for thread in self._threads), "an editor hangs"
        assert not self.errors, self.errors
        for zope in self._zopes:
            for name, number in self.edits.items():
                text = shown(zope.visitor, f"{self._folder}/{name}")
                assert text in self._latest.values() if name == SHARED else text == f"{name} {number}"
