"""What an application on Zope does with blobs, as plone.namedfile does it; the Zopes of the tests load it."""

from __future__ import annotations

from typing import Any

from OFS.SimpleItem import SimpleItem
from Products.Five.browser import BrowserView
from ZODB.blob import Blob
from ZPublisher import zpublish
from ZPublisher.Iterators import filestream_iterator

#: For `etc/package-includes` of an instance: Zope reads it at its start.
ZCML = f"""
<configure xmlns="http://namespaces.zope.org/zope" xmlns:browser="http://namespaces.zope.org/browser">
  <browser:page for="OFS.interfaces.IFolder" name="add_picture" class="{__name__}.AddPicture"
                permission="zope2.ViewManagementScreens" />
</configure>
"""


class Picture(SimpleItem):  # type: ignore[misc]
    """Bytes in a blob, served out of the file that the storage has of them."""

    def __init__(self, id: str, data: bytes) -> None:  # noqa: A002
        self.id = id
        self.blob = Blob(data)

    @zpublish  # type: ignore[untyped-decorator]
    def index_html(self, RESPONSE: Any) -> Any:  # noqa: N803
        """The bytes."""
        stream = filestream_iterator(self.blob.committed(), "rb")
        RESPONSE.setHeader("Content-Type", "image/png")
        RESPONSE.setHeader("Content-Length", str(len(stream)))
        return stream


class AddPicture(BrowserView):  # type: ignore[misc]
    """`POST folder/@@add_picture` with `id` and `file`."""

    def __call__(self) -> str:
        name = self.request.form["id"]
        self.context._setObject(name, Picture(name, self.request.form["file"].read()))
        return f"added {name}"
