"""The strategy of the playbooks with and without Mitogen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
# Becoming who one is already needs no sudo: a bare machine has none.
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  become: true
  become_user: "{{ lookup('ansible.builtin.pipe', 'id -un') }}"
  tasks: [{ansible.builtin.ping: {}}]
"""


@pytest.mark.parametrize("mitogen", [True, False], ids=["with-mitogen", "without-mitogen"])
def test_a_playbook_runs_either_way_and_warns_of_nothing(tmp_path, mitogen):
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "absent").mkdir()
    if not mitogen:
        (tmp_path / "absent" / "ansible_mitogen.py").write_text("raise ImportError")
    (tmp_path / "said.py").write_text(
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print('mitogen', 'mitogen.core' in sys.modules))\n"
        "sys.argv = ['ansible-playbook', *sys.argv[1:]]\n"
        "from ansible.cli.playbook import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [
            sys.executable,
            str(tmp_path / "said.py"),
            "-i",
            "localhost,",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            str(tmp_path / "play.yml"),
        ],
        cwd=PROJECT,
        env=os.environ
        | {
            "PYTHONPATH": str(tmp_path / "absent"),
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_BECOME_EXE": "/nonexistent",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ok=1" in run.stdout
    assert f"mitogen {mitogen}" in run.stdout
    assert "DEPRECATION" not in run.stderr
