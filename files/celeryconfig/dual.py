"""Two stores at once, while results move from one to the other: deployed as celeryconfig_dual.py.

base.py calls one function, with what the modules of both backends answered.
"""

from collections.abc import Mapping as _Mapping
from typing import Any as _Any


def result_settings(
    stage: str, journal: str, old: _Mapping[str, _Any], new: _Mapping[str, _Any]
) -> dict[str, _Any]:
    """Return the settings that store results on both sides and read them as the stage has it."""
    return {
        "result_backend": "celery_results.backends.dual:DualBackend",
        # Address, TLS, timeouts and options stay those of each side; unknown ones are refused.
        "result_backend_transport_options": {
            "stage": stage,
            "old": dict(old),
            "new": dict(new),
            # What one side did not take, by id: for `celery-results repair`.
            "journal": journal,
        },
    }
