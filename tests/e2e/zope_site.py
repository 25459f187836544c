"""A real Zope on a cluster: an instance home, `runwsgi` as a process of its own, and an HTTP client for it."""

from __future__ import annotations

import base64
import html
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from email.message import Message
from pathlib import Path
from typing import IO, NamedTuple
from urllib.request import Request, urlopen

from raftstorage.ops.child import PARENT_VARIABLE

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "moving.md"
#: The manager that an instance is made with.
ADMIN = ("admin", "secret")
#: Zope imports some hundred modules before it serves.
START_SECONDS = 90.0
#: A request may meet an election, and a machine that is busy with other tests.
ANSWER_SECONDS = 90.0
STOP_SECONDS = 30.0
SERVING = re.compile(r"Serving on (http://127\.0\.0\.1:\d+)")
FAULT = re.compile(r"Traceback|\b(?:ERROR|CRITICAL)\b")


def documented_lines() -> str:
    """What the documentation has an instance's zope.conf say about the database."""
    section = DOCUMENT.read_text().split("\n## With Zope\n")[1].split("\n## ")[0]
    return section.split("\n```\n")[1]


class Answer(NamedTuple):
    body: bytes
    headers: Message
    seconds: float

    @property
    def text(self) -> str:
        return self.body.decode()


class Browser:
    """One user's HTTP client for one Zope. Redirects are followed; any status from 400 on is an HTTPError."""

    def __init__(self, url: str, user: tuple[str, str] | None = None) -> None:
        self._url = url
        self._headers = {}
        if user is not None:
            credentials = base64.b64encode(":".join(user).encode()).decode()
            self._headers["Authorization"] = f"Basic {credentials}"

    def get(self, path: str) -> Answer:
        return self._ask(path)

    def post(self, path: str, fields: dict[str, str | list[str]]) -> Answer:
        """Sends a form."""
        data = urllib.parse.urlencode(fields, doseq=True).encode()
        return self._ask(path, data)

    def upload(self, path: str, fields: dict[str, str], data: bytes) -> Answer:
        """Sends a form with a file named `file`."""
        boundary = secrets.token_hex(16)
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="some.bin"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = "".join(parts).encode() + data + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return self._ask(path, body, headers)

    def _ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        request = Request(f"{self._url}/{path}", body, self._headers | (headers or {}))  # noqa: S310 - its own Zope
        begun = time.monotonic()
        with urlopen(request, timeout=ANSWER_SECONDS) as reply:  # noqa: S310
            return Answer(reply.read(), reply.headers, time.monotonic() - begun)


class Undoable(NamedTuple):
    """A row of the ZMI's Undo tab."""

    choice: str  # what its checkbox sends
    description: str
    user: str


_UNDOABLE = re.compile(
    r'name="transaction_info:list" value="([^"]*)".*?<td>\s*(.*?)\s*by <strong>(.*?)</strong>', re.DOTALL
)
DATABASE = "Control_Panel/Database/main"


def undoable(manager: Browser) -> list[Undoable]:
    """What the Undo tab of the Control Panel's database offers, newest first; 20 at most, as it is."""
    form = manager.get(f"{DATABASE}/manage_UndoForm").text
    found = [Undoable(*map(html.unescape, row)) for row in _UNDOABLE.findall(form)]
    assert found or "There are no transactions that can be undone." in form
    return found


def undo(manager: Browser, *chosen: Undoable) -> Answer:
    """Presses Undo; the page that comes back says when it could not be done."""
    choices = [one.choice for one in chosen]
    return manager.post(f"{DATABASE}/manage_undo_transactions", {"transaction_info:list": choices})


class Zope:
    """An instance that mkwsgiinstance makes in `home`, with the documented lines for a cluster's `addresses`."""

    def __init__(self, home: Path, addresses: str) -> None:
        self.home = home
        self.url = ""
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._reader: threading.Thread | None = None
        self._make(addresses)

    def _make(self, addresses: str) -> None:
        make = [Path(sys.executable).with_name("mkwsgiinstance"), "-d", self.home, "-u", ":".join(ADMIN)]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL, timeout=START_SECONDS)
        conf = self.home / "etc" / "zope.conf"
        lines, found = re.subn("node-1:7441, node-2:7441, node-3:7441", addresses, documented_lines())
        assert found == 1, "the documentation's servers were renamed"
        made, found = re.subn(r"(?s)<zodb_db main>.*?</zodb_db>\n", lambda _: lines, conf.read_text(), count=1)
        assert found == 1, "mkwsgiinstance makes other files now"
        conf.write_text(made)
        ini = self.home / "etc" / "zope.ini"
        made, found = re.subn("(?m)^port = 8080$", "port = 0", ini.read_text())  # the system picks one
        assert found == 1, "mkwsgiinstance makes other files now"
        ini.write_text(made)
        includes = self.home / "etc" / "package-includes"
        includes.mkdir()
        from tests.e2e import zope_pictures

        (includes / "pictures-configure.zcml").write_text(zope_pictures.ZCML)

    def start(self) -> None:
        """Returns when it takes connections: it says on which port then."""
        assert self._process is None, "it runs"
        # What `runwsgi` runs, as a process that ends with this one however it ends.
        command = [
            sys.executable,
            "-m",
            "raftstorage.ops.child",
            "Zope2.Startup.serve",
            self.home / "etc" / "zope.ini",
        ]
        self._process = subprocess.Popen(
            ["env", "--default-signal=INT", *command],  # a shell's background job begins with SIGINT ignored
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.home,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", PARENT_VARIABLE: str(os.getpid())},
            text=True,
            start_new_session=True,
        )
        served: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout, served), daemon=True)
        self._reader.start()
        try:
            self.url = served.get(timeout=START_SECONDS)
        except queue.Empty:
            self.url = ""
        if not self.url:
            self.kill()
            raise AssertionError(f"Zope does not serve:\n{self.log()}")

    def _read(self, stream: IO[str], served: queue.SimpleQueue[str]) -> None:
        with stream:
            for line in stream:
                self._lines.append(line)
                found = SERVING.search(line)
                if found:
                    served.put(found[1])
        served.put("")

    def log(self) -> str:
        """The last of what it said."""
        return "".join(self._lines[-200:])

    def faults(self) -> list[str]:
        """What it logged as wrong since it was made, over all its starts."""
        return [line for line in self._lines if FAULT.search(line)]

    def stop(self) -> int:
        """As Ctrl-C does, which closes its databases; the exit status."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._gone()
        return code

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._gone()

    def _gone(self) -> None:
        assert self._reader is not None
        self._reader.join(STOP_SECONDS)
        self._process = self._reader = None

    @property
    def visitor(self) -> Browser:
        """Who is not logged in."""
        return Browser(self.url)

    @property
    def manager(self) -> Browser:
        return Browser(self.url, ADMIN)

    def user(self, name: str, password: str) -> Browser:
        return Browser(self.url, (name, password))
