"""A Hugging Face Hub on the loopback interface, for unmodified clients: data sets, commits, tags, large files, tokens.

Its repositories live in memory. A test says what is there, what goes wrong with which request, and afterwards what was
asked and how many bytes moved::

    hub = Hub()                                            # HF_ENDPOINT=hub.url, or endpoint=hub.url per call
    hub.tokens["hf_x"] = Token("owner")                    # may write to owner/...
    hub.create("owner/name").push({"README.md": b"..."})   # as somebody else would
    hub.fail("PUT /lfs/", status=500, times=2)
    hub.received("PUT /lfs/")                              # bytes of request bodies

Large files go by Git LFS, or, with ``xet=FOLDER``, through hf_xet, which then keeps its objects in that folder instead
of sending them to a server. ``local://`` is an internal matter of hf_xet: the layout of the folder is that of 1.8.
"""

from loopback_hub.hub import Hub
from loopback_hub.messages import Fault, Request, Token
from loopback_hub.repositories import GITATTRIBUTES, LARGE, Commit, Entry, FakeRepository, HubError

__all__ = [
    "GITATTRIBUTES",
    "LARGE",
    "Commit",
    "Entry",
    "FakeRepository",
    "Fault",
    "Hub",
    "HubError",
    "Request",
    "Token",
]
