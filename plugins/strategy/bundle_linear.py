"""Ansible's linear strategy, over Mitogen's connections where Mitogen is installed, as in .venv.

Mitogen keeps one Python process on each host for the whole run instead of starting several for each task: a
run that changes nothing takes a quarter of the time (benchmarks/provision.py). It replaces the connections
ssh, local, docker and their like, and becoming root; any other connection works as ever. Without it:
ANSIBLE_STRATEGY=linear.

On the controller, a task that runs alone or never leaves it needs no process of its own (`Worker`), and
neither a template (`remember_templates`) nor a module is compiled twice: together they spare half of a run's
processor time.
"""

import builtins
import functools
import gc
import getpass
from typing import Any

import ansible.plugins.strategy
from ansible.collections.list import list_collection_dirs
from ansible.errors import AnsibleError
from ansible.executor.process.worker import WorkerProcess
from ansible.executor.task_executor import TaskExecutor
from ansible.plugins.loader import strategy_loader
from ansible.release import __version__ as ansible_core

# Any other release is refused by preflight, in words, so it has to get that far.
FAMILIAR = ansible_core.startswith("2.19.")
if FAMILIAR:
    from ansible._internal import _task
    from ansible._internal._templating import _jinja_bits
    from ansible.executor.task_queue_manager import _RawTaskResult

Linear: Any = strategy_loader.get("linear", class_only=True)
try:
    # It refuses an Ansible that it does not know with an AnsibleError.
    from ansible_mitogen import module_finder
    from ansible_mitogen.strategy import StrategyMixin
    from ansible_mitogen.transport_config import PlayContextSpec
except (ImportError, AnsibleError):
    MITOGEN = False

    class StrategyMixin:  # type: ignore[no-redef]
        """Nothing to mix in."""

else:
    MITOGEN = True
    configured_user = PlayContextSpec.remote_user

    def remote_user(spec: Any) -> Any:  # noqa: ANN401 # Mitogen has no types
        """Return who logs in; on this machine, as in Ansible, whoever runs it.

        Else root would become root by sudo, which a bare machine does not have.
        """
        return getpass.getuser() if spec.transport() == "local" else configured_user(spec)

    PlayContextSpec.remote_user = remote_user
    # To learn what to send along, Mitogen compiles each module with all that it imports, often the same.
    module_finder.compile = functools.cache(builtins.compile)

# Actions of Ansible's own that only read and set variables.
CONTROLLER_ACTIONS = {
    "ansible.builtin.assert",
    "ansible.builtin.debug",
    "ansible.builtin.fail",
    "ansible.builtin.include_role",
    "ansible.builtin.include_tasks",
    "ansible.builtin.set_fact",
    "ansible.builtin.validate_argument_spec",
}


class Worker(WorkerProcess):  # type: ignore[misc] # Ansible has no types
    """A worker that becomes a process only where tasks of several hosts are to run side by side.

    Ansible forks for each task of each host, which costs several times what most of them do on the
    controller. A task that runs alone has nothing to run beside: over Mitogen it is waited for here. Other
    connections start programs (ssh) that a worker keeps from the terminal, so those still get a process.
    """

    alone = False

    def start(self) -> None:
        """Start the process, or run the task here: on copies, as a process would."""
        if not (self._task.action in CONTROLLER_ACTIONS or (MITOGEN and self.alone)):
            super().start()
            return
        task = self._task.copy(exclude_tasks=True)
        with _task.TaskContext(task):
            outcome = TaskExecutor(
                self._host,
                task,
                self._task_vars.copy(),
                self._play_context,
                self._loader,
                self._shared_loader_obj,
                self._final_q,
                self._variable_manager,
            ).run()
        fields = task.dump_attrs()
        self._final_q.send_task_result(
            _RawTaskResult(host=self._host, task=task, return_data=outcome, task_fields=fields)
        )


@functools.cache
def remember_templates() -> None:
    """Compile each template and each condition once; Ansible does so whenever it reads a variable.

    The code follows from the text, the delimiters and the treatment of backslashes. Processes inherit what
    was compiled before they were forked.
    """
    environment: Any = _jinja_bits.AnsibleEnvironment
    jinja_compile = environment.compile
    jinja_compile_expression = environment.compile_expression
    compiled: dict[tuple[Any, ...], Any] = {}

    def key(self: Any, kind: str, source: str) -> tuple[Any, ...]:  # noqa: ANN401 # Jinja's environment
        context = _jinja_bits._TemplateCompileContext.current(optional=True)  # noqa: SLF001
        syntax = (getattr(self, name) for name in _jinja_bits._TEMPLATE_OVERRIDE_FIELD_NAMES)  # noqa: SLF001
        return kind, str(source), context and context.escape_backslashes, *syntax

    def compile_once(self: Any, source: Any, *place: Any, **options: Any) -> Any:  # noqa: ANN401
        # A file that a template includes has a place; what is parsed already is an expression, kept below.
        if place or options or not isinstance(source, str):
            self.code_of_expression = jinja_compile(self, source, *place, **options)
            return self.code_of_expression
        wanted = key(self, "template", source)
        if wanted not in compiled:
            compiled[wanted] = jinja_compile(self, source)
        return compiled[wanted]

    def compile_expression_once(self: Any, source: str, undefined_to_none: bool = True) -> Any:  # noqa: ANN401, FBT001, FBT002
        wanted = key(self, "expression", source)
        if wanted in compiled:
            template = self.template_class.from_code(self, compiled[wanted], self.make_globals(None), None)
            return _jinja_bits.TemplateExpression(template, undefined_to_none)
        expression = jinja_compile_expression(self, source, undefined_to_none)
        compiled[wanted] = self.code_of_expression
        return expression

    environment.compile = compile_once
    environment.compile_expression = compile_expression_once


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
        if FAMILIAR:
            remember_templates()
        # What is there now stays to the end: no process needs to look for garbage in it, and so copy it. What
        # comes is little garbage, and looking for it as often as Python does took up to a tenth of a run.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)

    def _queue_task(self, host: Any, task: Any, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        # A play over hosts in batches (serial) has those of the batch here.
        Worker.alone = len(self._hosts_cache) == 1 or task.run_once is True
        super()._queue_task(host, task, *arguments, **named)

    def run(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """Run a play with workers of the kind above."""
        ansible.plugins.strategy.WorkerProcess = Worker if FAMILIAR else WorkerProcess
        try:
            return super().run(*arguments, **named)
        finally:
            ansible.plugins.strategy.WorkerProcess = WorkerProcess
