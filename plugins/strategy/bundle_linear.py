"""Ansible's linear strategy, over Mitogen's connections where Mitogen is installed, as in .venv.

Mitogen keeps one Python process on each host for the whole run instead of starting several for each task: a
run that changes nothing takes about half the time (benchmarks/provision.py). It replaces the connections ssh,
local, docker and their like, and becoming root; any other connection works as ever. Without it:
ANSIBLE_STRATEGY=linear.
"""

import functools
import getpass
from typing import Any

from ansible.collections.list import list_collection_dirs
from ansible.errors import AnsibleError
from ansible.plugins.loader import strategy_loader

Linear: Any = strategy_loader.get("linear", class_only=True)
try:
    # It refuses an Ansible that it does not know with an AnsibleError.
    from ansible_mitogen.strategy import StrategyMixin
    from ansible_mitogen.transport_config import PlayContextSpec
except (ImportError, AnsibleError):

    class StrategyMixin:  # type: ignore[no-redef]
        """Nothing to mix in."""

else:
    configured_user = PlayContextSpec.remote_user

    def remote_user(spec: Any) -> Any:  # noqa: ANN401 # Mitogen has no types
        """Return who logs in; on this machine, as in Ansible, whoever runs it.

        Else root would become root by sudo, which a bare machine does not have.
        """
        return getpass.getuser() if spec.transport() == "local" else configured_user(spec)

    PlayContextSpec.remote_user = remote_user


@functools.cache
def know_collections() -> None:
    """Read the description of every installed collection.

    Mitogen does so for each task whose module is a collection's, in that task's own process; what the parent
    has read, the process finds there.
    """
    list(list_collection_dirs())


class StrategyModule(StrategyMixin, Linear):  # type: ignore[misc] # neither ships types
    """One task after the other, each on all hosts."""

    def __init__(self, tqm: Any) -> None:  # noqa: ANN401, D107 # Ansible has no types
        super().__init__(tqm)
        know_collections()
