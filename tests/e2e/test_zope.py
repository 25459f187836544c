"""A real Zope, configured by the lines in the documentation, serves pages on a cluster that loses its leaders."""

from __future__ import annotations

import email.utils
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError

import pytest

from tests.e2e.zope_editors import Editors, add_page, page_source, shown
from tests.e2e.zope_site import DATABASE, Zope, undo, undoable

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster


class Site(NamedTuple):
    """Two Zopes on one cluster."""

    cluster: LocalCluster
    one: Zope
    other: Zope

    @property
    def zopes(self) -> tuple[Zope, Zope]:
        return self.one, self.other

    def shown(self, path: str) -> str:
        """What both show."""
        text, again = (shown(zope.visitor, path) for zope in self.zopes)
        assert text == again
        return text

    def edit(self, path: str, *texts: str) -> None:
        for text in texts:
            self.one.manager.post(f"{path}/pt_editAction", page_source(text))

    def kill_leader(self) -> int:
        dead = self.cluster.leader(timeout=30)
        self.cluster.kill(dead)
        return dead


@pytest.fixture(scope="module")
def site(make_disk_directory: Callable[..., Any], end_cluster: Callable[..., None]) -> Iterator[Site]:
    """It logged no error, and no node did, when it ends."""
    from raftstorage.ops.local import LocalCluster

    with ExitStack() as stack:
        directory = stack.enter_context(make_disk_directory())
        cluster = stack.enter_context(LocalCluster(nodes=3, directory=directory / "cluster"))
        zopes = []
        for name in ("one", "other"):
            zope = Zope(directory / name, cluster.addresses)
            stack.callback(zope.kill)
            zope.start()
            zopes.append(zope)
        yield Site(cluster, *zopes)
        assert [zope.faults() for zope in zopes] == [[], []]
        end_cluster(cluster)


@pytest.fixture
def folder(site: Site, request: pytest.FixtureRequest) -> str:
    """A folder of the test's own, made in the ZMI."""
    name: str = request.node.name
    site.one.manager.post("manage_addProduct/OFSP/manage_addFolder", {"id": name})
    return name


def test_edits_are_shown_at_once_by_every_zope(site: Site, folder: str) -> None:
    add_page(site.one.manager, folder, "page", "first")
    for number in range(6):
        editor = site.zopes[number % 2].manager
        editor.post(f"{folder}/page/pt_editAction", page_source(f"edit {number}"))
        assert site.shown(f"{folder}/page") == f"edit {number}"

    document = f"{folder}/document"
    site.one.manager.post(f"{folder}/manage_addProduct/OFSP/manage_addDTMLDocument", {"id": "document"})
    site.one.manager.post(f"{document}/manage_edit", {"title": "Grüße", "data": "<dtml-var title>!"})
    assert [zope.visitor.get(document).text for zope in site.zopes] == ["Grüße!"] * 2

    site.other.manager.post(f"{folder}/manage_delObjects", {"ids:list": ["document"]})
    for zope in site.zopes:
        with pytest.raises(HTTPError, match="404"):
            zope.visitor.get(document)
    with pytest.raises(HTTPError, match="401"):
        site.one.visitor.post(f"{folder}/page/pt_editAction", page_source("by nobody"))
    assert site.shown(f"{folder}/page") == "edit 5"


def test_files_and_blobs_are_served(site: Site, folder: str, rng: random.Random) -> None:
    file, picture = rng.randbytes(300_000), rng.randbytes(3_000_000)
    site.one.manager.upload(f"{folder}/manage_addProduct/OFSP/manage_addFile", {"id": "file"}, file)
    dead = site.kill_leader()
    added = site.one.manager.upload(f"{folder}/@@add_picture", {"id": "picture"}, picture)
    assert added.text == "added picture"

    for zope in site.zopes:
        answer = zope.visitor.get(f"{folder}/file")
        assert answer.body == file
        changed = email.utils.parsedate_to_datetime(answer.headers["Last-Modified"]).timestamp()
        assert abs(changed - time.time()) < 300
        assert zope.visitor.get(f"{folder}/picture").body == picture
        assert list((zope.home / "var" / "blobs").rglob("*.blob")), "it is no blob"
    site.cluster.start(dead)


def test_history_tab_compares_and_copies_revisions(site: Site, folder: str) -> None:
    add_page(site.one.manager, folder, "page", "an old text")
    site.edit(f"{folder}/page", "a later text", "a new text")
    page = f"{folder}/page"
    history = site.other.manager.get(f"{page}/manage_change_history_page").text
    keys = re.findall(r'value="([\d.]+)" name="keys:list"', history)
    assert len(keys) == 4
    assert history.count(f"/{page}/pt_editAction") == 3

    compared = site.other.manager.post(
        f"{page}/manage_historicalComparison", {"keys:list": [keys[0], keys[2]]}
    ).text
    assert "an old text" in compared and "a new text" in compared and "a later text" not in compared
    source = site.other.manager.get(f"{page}/HistoricalRevisions/{keys[2]}/document_src").text
    assert source == page_source("an old text")["text"]

    site.other.manager.post(f"{page}/manage_historyCopy", {"keys:list": [keys[2]]})
    assert site.shown(page) == "an old text"


def test_undo_tab_takes_back_an_edit_over_a_dead_leader(site: Site, folder: str) -> None:
    site.one.manager.post(
        "acl_users/manage_users",
        {"submit": "Add", "name": "Zoë", "password": "päss", "confirm": "päss", "roles:list": ["Manager"]}
        | {"domains:tokens": ""},
    )
    add_page(site.one.manager, folder, "page", "old")
    add_page(site.one.manager, folder, "another", "as it was")
    site.other.user("Zoë", "päss").post(f"{folder}/page/pt_editAction", page_source("new"))
    site.edit(f"{folder}/another", "and as it is")

    dead = site.kill_leader()
    offered = undoable(site.one.manager)
    edits = [one for one in offered if one.description == f"/{folder}/page/pt_editAction"]
    assert [one.user.strip() for one in edits] == ["Zoë", "admin"]
    undo(site.one.manager, edits[0])

    assert site.shown(f"{folder}/page") == "old"
    assert site.shown(f"{folder}/another") == "and as it is"
    undone = undoable(site.other.manager)[0]
    assert f"/{DATABASE}/manage_undo_transactions" in undone.description, undone
    undo(site.other.manager, undone)
    assert site.shown(f"{folder}/page") == "new"
    site.cluster.start(dead)


def test_undo_tab_says_what_cannot_be_undone(site: Site, folder: str) -> None:
    add_page(site.one.manager, folder, "page", "first")
    site.edit(f"{folder}/page", "second", "third")
    second = undoable(site.one.manager)[1]

    answer = undo(site.one.manager, second)

    assert "MultipleUndoErrors" in answer.text  # as with a FileStorage
    assert "Some data were modified by a later transaction" in answer.text
    assert site.shown(f"{folder}/page") == "third"


def test_no_edit_is_lost_while_leaders_die(
    site: Site, folder: str, open_storage: Callable[..., Any], notes_of: Callable[[Any], list[str]]
) -> None:
    """No request is answered with an error either, and none is tried again by whoever asks."""
    with Editors(site.zopes, folder, 2) as editors:
        for _ in range(3):
            editors.more(10)
            dead = site.kill_leader()
            editors.more(10)
            site.cluster.start(dead)
        editors.more(10)
    editors.check()
    assert editors.readings and min(editors.edits.values())
    print(f"{sum(editors.edits.values())} edits, {editors.readings} readings, longest {editors.longest:.2f} s")

    notes = notes_of(open_storage(site.cluster.addresses))
    done = {name: notes.count(f"/{folder}/{name}/pt_editAction") - 1 for name in editors.edits}
    assert done == editors.edits, "an edit happened twice, or not at all"


def test_zope_stops_and_starts_while_a_node_is_away(site: Site, folder: str) -> None:
    add_page(site.one.manager, folder, "page", "before")

    assert site.one.stop() == 0
    assert (site.one.home / "var" / "cache" / "main.cache").exists()
    dead = site.kill_leader()
    site.other.manager.post(f"{folder}/page/pt_editAction", page_source("meanwhile"))
    site.one.start()

    assert site.shown(f"{folder}/page") == "meanwhile"
    assert "begun anew" not in site.one.log(), "the cache of its last run was of no use"
    site.cluster.start(dead)


def objects(site: Site) -> int:
    """As the Control Panel counts them."""
    text = site.one.manager.get(f"{DATABASE}/manage_main").text
    found = re.search(r'objects in the database</td>\s*<td class="code">(\d+)<', text)
    assert found, text
    return int(found[1])


def test_pack_in_the_control_panel_over_a_dead_leader(site: Site, folder: str) -> None:
    page = f"{folder}/page"
    add_page(site.one.manager, folder, "page", "old")
    site.one.manager.upload(f"{folder}/manage_addProduct/OFSP/manage_addFile", {"id": "file"}, b"x" * 300_000)
    site.edit(page, "new")
    edit = undoable(site.one.manager)[0]
    site.one.manager.post(f"{folder}/manage_delObjects", {"ids:list": ["file"]})
    counted = objects(site)

    dead = site.kill_leader()
    answer = site.one.manager.post(f"{DATABASE}/manage_pack", {"days:float": "0"})

    assert "Database packed to 0.0 days" in answer.text
    for zope in site.zopes:
        assert undoable(zope.manager) == []
        history = zope.manager.get(f"{page}/manage_change_history_page").text
        assert history.count('name="keys:list"') == 1
        assert "UndoError" in undo(zope.manager, edit).text  # out of a form from before
    assert site.shown(page) == "new"
    assert objects(site) < counted

    site.edit(page, "newer")
    (newest,) = undoable(site.other.manager)
    undo(site.other.manager, newest)
    assert site.shown(page) == "new"
    site.cluster.start(dead)
