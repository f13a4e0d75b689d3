"""The strategy of the playbooks with and without Mitogen."""

import os
import re
import signal
import subprocess
import sys
import time
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


# Each task says something that a task run without copies, or a template compiled for another purpose, would
# get wrong: variables of blocks and loops differ by host, one text is read with two syntaxes, and with a
# backslash that counts and one that does not.
TASKS = r"""
- hosts: all
  gather_facts: false
  vars:
    described: "{{ inventory_hostname }} has {{ chosen | default('nothing') }}"
  tasks:
    - ansible.builtin.set_fact: {chosen: "{{ inventory_hostname | upper }}"}
    - ansible.builtin.debug: {msg: "of {{ inventory_hostname }}: {{ described }}"}
      vars: {described: "{{ inventory_hostname }} has its own"}
    - vars: {of_block: "{{ inventory_hostname }} in the block"}
      when: chosen == (inventory_hostname | upper)
      block:
        - ansible.builtin.debug: {msg: "{{ of_block }}, {{ described }}"}
        - ansible.builtin.include_tasks: {file: inner.yml}
          loop: ["{{ inventory_hostname }}1", "{{ inventory_hostname }}2"]
        - ansible.builtin.command: echo {{ of_block }}
          register: said
        - ansible.builtin.assert: {that: said.stdout == of_block}
    - ansible.builtin.debug: {msg: "{{ item }} of {{ chosen }}"}
      loop: [1, 2]
      register: looped
      when: inventory_hostname == 'b' or item == 2
    - ansible.builtin.debug: {msg: "{{ looped.results | map(attribute='msg', default='skipped') }}"}
    - block:
        - ansible.builtin.assert: {that: inventory_hostname == 'b', fail_msg: "not {{ inventory_hostname }}"}
      rescue:
        - ansible.builtin.debug: {msg: "saved from {{ ansible_failed_result.msg }}"}
    - ansible.builtin.fail: {msg: "{{ nowhere_defined }}"}
      ignore_errors: true
    - ansible.builtin.set_fact: {secret: "hidden{{ 1 + 1 }}"}
      no_log: true
    - ansible.builtin.set_fact: {given: "{{ chosen }}"}
      delegate_to: "{{ 'b' if inventory_hostname == 'a' else 'a' }}"
      delegate_facts: true
    - ansible.builtin.debug: {msg: "given {{ given }}"}
    - ansible.builtin.debug: {msg: "{{ slashes }} in YAML, {{ in_a_file }} in a file"}
      vars:
        slashes: "{{ 'a\\\\b' | length }}"
        in_a_file: "{{ lookup('ansible.builtin.template', 'slashes.j2') }}"
    - ansible.builtin.debug:
        msg:
          - "{{ lookup('ansible.builtin.template', 'two.j2') }}"
          - "{{ lookup('ansible.builtin.template', 'two.j2', **other_syntax) }}"
      vars: {other_syntax: {variable_start_string: "[%", variable_end_string: "%]"}}
"""


def start(strategy, tmp_path, hosts):
    """Start play.yml on these hosts."""
    return subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            f"--inventory={hosts}",
            "--connection=local",
            "--forks=1",
            f"--extra-vars=ansible_python_interpreter={sys.executable}",
            str(tmp_path / "play.yml"),
        ],
        cwd=PROJECT,
        env=os.environ
        | {
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_STRATEGY": strategy,
            "ANSIBLE_ANY_ERRORS_FATAL": "false",
            "ANSIBLE_BECOME_EXE": "/nonexistent",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said_by(strategy, tmp_path, hosts="a,b,"):
    """Run play.yml on these hosts and return what Ansible printed."""
    with start(strategy, tmp_path, hosts) as run:
        output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    return output


def test_tasks_say_what_they_say_under_ansibles_own_strategy(tmp_path):
    (tmp_path / "play.yml").write_text(TASKS)
    (tmp_path / "inner.yml").write_text(
        "- ansible.builtin.debug: {msg: 'inner {{ item }} {{ of_block }} {{ chosen }}'}\n"
    )
    (tmp_path / "slashes.j2").write_text(r"{{ 'a\\b' | length }}")
    (tmp_path / "two.j2").write_text("{{ chosen }} [% chosen %]")
    theirs = said_by("linear", tmp_path)
    assert theirs.count("given ") == 2
    assert theirs.count("4 in YAML, 3 in a file") == 2
    assert theirs.count("saved from not a") == 1
    assert "hidden2" not in theirs
    assert said_by("bundle_linear", tmp_path) == theirs


# On one host, what goes to a host runs in the process of the playbook too: a loop over files to copy, a
# template, a module that fails, one in the background, one that is delegated.
ON_ONE_HOST = r"""
- hosts: all
  gather_facts: false
  become: true
  become_user: "{{ lookup('ansible.builtin.pipe', 'id -un') }}"
  tasks:
    - ansible.builtin.copy: {content: "{{ item }}", dest: "{{ playbook_dir }}/{{ item }}", mode: "0600"}
      loop: [one, two]
      register: copied
    - ansible.builtin.debug: {msg: "{{ copied.results | map(attribute='changed') }}"}
    - ansible.builtin.template: {src: slashes.j2, dest: "{{ playbook_dir }}/three", mode: "0600"}
      diff: true
    - ansible.builtin.slurp: {src: "{{ playbook_dir }}/three"}
      register: read
    - ansible.builtin.debug: {msg: "read {{ read.content | b64decode }}"}
    - ansible.builtin.command: "false"
      ignore_errors: true
    - ansible.builtin.command: echo behind
      async: 20
      poll: 1
      register: behind
    - ansible.builtin.debug: {msg: "came from {{ behind.stdout }}"}
    - ansible.builtin.command: pwd
      args: {chdir: /}
      environment: {NOWHERE: "here"}
      delegate_to: c
      register: delegated
    - ansible.builtin.debug: {msg: "at {{ delegated.stdout }}, {{ nowhere | length }}"}
      vars: {nowhere: "{{ lookup('ansible.builtin.env', 'NOWHERE') }}"}
    - ansible.builtin.command: /nonexistent
      ignore_errors: true
    - ansible.builtin.file: {path: "{{ playbook_dir }}/{{ item }}", state: absent}
      loop: [one, two, three]
"""


def test_tasks_of_one_host_say_what_they_say_under_ansibles_own_strategy(tmp_path):
    (tmp_path / "slashes.j2").write_text(r"{{ 'a\\b' | length }}")
    (tmp_path / "play.yml").write_text(ON_ONE_HOST)
    theirs = said_by("linear", tmp_path, "b,")
    ours = said_by("bundle_linear", tmp_path, "b,")
    # What a module says of itself, not of its task: a time, an id, where it was kept meanwhile.
    varying = re.compile(r"(started|finished|delta|start|end|ansible_job_id|results_file|.*jid=|.*tmp).*")
    assert varying.sub("", ours) == varying.sub("", theirs)
    assert "came from behind" in ours
    assert "at /, 0" in ours


WHO_RUNS_IT = """
- hosts: all
  gather_facts: false
  vars:
    noted: "{{ lookup('ansible.builtin.pipe', 'echo $PPID >> ' ~ playbook_dir ~ '/processes') }}"
  tasks:
    - ansible.builtin.ping: {data: "{{ noted }}"}
    - ansible.builtin.command: {cmd: "true", stdin: "{{ noted }}"}
"""


@pytest.mark.parametrize(("hosts", "processes"), [("a,", 1), ("a,b,", 4)], ids=["one-host", "two-hosts"])
def test_a_task_that_runs_alone_needs_no_process(tmp_path, hosts, processes):
    (tmp_path / "play.yml").write_text(WHO_RUNS_IT)
    said_by("bundle_linear", tmp_path, hosts)
    assert len(set((tmp_path / "processes").read_text().split())) == processes


def test_ctrl_c_ends_a_task_that_runs_alone(tmp_path):
    (tmp_path / "play.yml").write_text(f"""
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.shell: touch {tmp_path}/begun; exec sleep 60
    - ansible.builtin.file: {{path: {tmp_path}/after, state: touch}}
""")
    with start("bundle_linear", tmp_path, "a,") as run:
        try:
            wait_until = time.monotonic() + 30
            while not (tmp_path / "begun").exists():
                assert time.monotonic() < wait_until, run.communicate(timeout=10)[0]
                time.sleep(0.05)
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=20)
        finally:
            run.kill()
    assert run.returncode != 0
    assert "User interrupted execution" in output
    assert not (tmp_path / "after").exists()


def test_what_stays_on_the_controller_needs_no_process(tmp_path):
    (tmp_path / "play.yml").write_text("""
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact: {first: "{{ lookup('ansible.builtin.pipe', 'echo $PPID') }}"}
    - ansible.builtin.set_fact: {second: "{{ lookup('ansible.builtin.pipe', 'echo $PPID') }}"}
    - ansible.builtin.debug: {msg: "same={{ first == second }}"}
""")
    assert said_by("bundle_linear", tmp_path).count("same=True") == 2
    assert said_by("linear", tmp_path).count("same=False") == 2
