"""What every check raises."""

from __future__ import annotations


class Broken(AssertionError):
    """A promise to the clients is broken; the message says to whom, what was promised and what was seen."""
