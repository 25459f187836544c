"""How fast bytes may go."""

from __future__ import annotations

import asyncio


class TokenBucket:
    """Lets `rate` bytes a second through on average, `burst` bytes at once after a rest. Pure: time is handed in.

    A piece waits until what was taken before it has been paid for, and then goes through whatever its size. So no
    piece is too large, and those who share the bucket get their turns in the order of asking. `rate` 0: no limit.
    """

    def __init__(self, rate: float, burst: float) -> None:
        if rate < 0 or burst < 0:
            raise ValueError("a rate and a burst are not below 0")
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._last: float | None = None

    def take(self, amount: int, now: float) -> float:
        """Takes `amount` bytes; how many seconds to wait before they go. `now`: seconds of a clock."""
        if not self._rate:
            return 0.0
        if self._last is not None and now > self._last:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now if self._last is None else max(now, self._last)
        self._tokens -= amount
        return max(0.0, -self._tokens / self._rate)


class Pace:
    """A bucket on the loop's clock. Always gives the loop a turn."""

    def __init__(self, rate: float, burst: float) -> None:
        self._bucket = TokenBucket(rate, burst)

    async def wait(self, amount: int) -> None:
        """Returns when `amount` bytes may go."""
        await asyncio.sleep(self._bucket.take(amount, asyncio.get_running_loop().time()))
