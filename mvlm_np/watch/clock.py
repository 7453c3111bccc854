"""Time, as everything here sees it; tests have one of their own."""

import time
from datetime import datetime


class Clock:
    """The real one."""

    def now(self) -> float:
        """Seconds since some beginning; never set back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Comes back after that time."""
        time.sleep(seconds)

    def date(self) -> datetime:
        """With the local time zone."""
        return datetime.now().astimezone()
