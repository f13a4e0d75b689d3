"""How a process sets Python up that goes through millions of results."""

from __future__ import annotations

import gc
import sys
from typing import Final

_SWITCH_SECONDS: Final = 0.0005


def set_up() -> None:
    """Do so for the rest of the process."""
    # Millions of tuples and no cycles: looking for some costs a tenth of the time, and finds none.
    gc.disable()
    # A thread lets go at each piece that it sends: it shall not wait 5 ms for its turn each time.
    sys.setswitchinterval(_SWITCH_SECONDS)
