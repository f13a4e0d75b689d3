# ruff: noqa: INP001 - beside the program that imports it, as on the host
"""The running RabbitMQ node: asked and told over Erlang's own protocol, on loopback.

erl_call of Debian's erlang-base takes 20 ms, where rabbitmqctl takes half a second and more. The cookie is
read from its file and is on no command line; expressions come on standard input, in no process list.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

HOME: Final = os.environ.get("CELERY_RESULTS_RABBITMQ_HOME", "/var/lib/rabbitmq")
NODE: Final = "rabbit@localhost"
EPMD_PORT: Final = 4369
CALL_SECONDS: Final = 60
LISTENING: Final = "0A"

# How a running node takes a setting.
LIVE: Final = {
    "heartbeat": "application:set_env(rabbit, heartbeat, {value})",
    "channel_max": "application:set_env(rabbit, channel_max, {value})",
    "consumer_timeout": "application:set_env(rabbit, consumer_timeout, {value})",
    "disk_free_limit.absolute": 'rabbit_disk_monitor:set_disk_free_limit("{value}")',
    "vm_memory_high_watermark.relative": "vm_memory_monitor:set_vm_memory_high_watermark({value})",
    "vm_memory_high_watermark.absolute": (
        'vm_memory_monitor:set_vm_memory_high_watermark({{absolute, "{value}"}})'
    ),
}
# And what it answers when asked for it.
LIVE_QUESTIONS: Final = {
    "heartbeat": "{{ok, V}} = application:get_env(rabbit, heartbeat), V == {value}",
    "channel_max": "{{ok, V}} = application:get_env(rabbit, channel_max), V == {value}",
    "consumer_timeout": "{{ok, V}} = application:get_env(rabbit, consumer_timeout), V == {value}",
    "disk_free_limit.absolute": (
        '{{ok, V}} = rabbit_resource_monitor_misc:parse_information_unit("{value}"), '
        "rabbit_disk_monitor:get_disk_free_limit() == V"
    ),
    "vm_memory_high_watermark.relative": "vm_memory_monitor:get_vm_memory_high_watermark() == {value}",
    "vm_memory_high_watermark.absolute": (
        '{{ok, V}} = rabbit_resource_monitor_misc:parse_information_unit("{value}"), '
        "vm_memory_monitor:get_memory_limit() == V"
    ),
}
LIVE_VALUE: Final = re.compile(r"[A-Za-z0-9.]+")

# JSON in base64, in pieces: of a longer string or of a binary, erl_call prints the beginning only.
PRINTED: Final = (
    "(fun Cut(<<Piece:30000/binary, Rest/binary>>) -> [binary_to_list(Piece) | Cut(Rest)]; "
    "Cut(Rest) -> [binary_to_list(Rest)] end)(base64:encode(rabbit_json:encode({term})))"
)
# One question for all that `pending` compares. Ports are asked of the sockets: RabbitMQ's own list says
# 0.0.0.0 for some that are bound to one address.
STATE: Final = """
(fun() ->
  Sockets = [{{inet:ntoa(Address), Port}} || Socket <- erlang:ports(),
    erlang:port_info(Socket, name) == {{name, "tcp_inet"}},
    {{ok, Status}} <- [prim_inet:getstatus(Socket)], lists:member(listen, Status),
    {{ok, {{Address, Port}}}} <- [inet:sockname(Socket)]],
  All = rabbit_definitions:all_definitions(),
  Names = [{names}],
  State = #{{
    pid => list_to_binary(os:getpid()),
    started => erlang:convert_time_unit(
      erlang:system_info(start_time) + erlang:time_offset(), native, millisecond),
    definitions => (maps:with([users, vhosts, permissions, topic_permissions, policies, exchanges], All))#{{
      queues => [Queue || #{{<<"name">> := Name}} = Queue <- maps:get(queues, All),
        lists:member(Name, Names)],
      bindings => [Binding || #{{<<"source">> := Name}} = Binding <- maps:get(bindings, All),
        lists:member(Name, Names)]}},
    listening => [[list_to_binary(Address), Port] || {{Address, Port}} <- Sockets],
    features => [Name || {{Name, Properties}} <- maps:to_list(rabbit_feature_flags:list(disabled)),
      maps:get(stability, Properties, stable) == stable],
    alarms => [Alarm || {{{{resource_limit, Alarm, _}}, _}} <- rabbit_alarm:get_alarms()],
    live => #{{{live}}}}},
  {printed}
end)().
"""


def fail(message: str, code: int = 1) -> NoReturn:
    """End with a message."""
    sys.stderr.write(f"celery-results-rabbitmq: {message}\n")
    sys.exit(code)


def call(expression: str) -> str | None:
    """Have the node evaluate an Erlang expression and return what it prints; None where no node answers."""
    # No module speaks Erlang's protocol. HOME is where erl_call finds the cookie.
    answer = subprocess.run(  # noqa: S603
        ["/usr/bin/erl_call", "-sname", NODE, "-e"],
        # Up to a full stop and a new line.
        input=f"{expression}\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=CALL_SECONDS,
        env={"HOME": HOME, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    if answer.returncode:
        if is_registered():
            fail(
                f"{NODE} runs, but refuses the cookie in {HOME}/.erlang.cookie: it was started with another "
                "one, and rabbitmqctl cannot talk to it either. A node reads its cookie at the start only. "
                "Put the old file back, or restart the node with the new one: systemctl restart "
                "rabbitmq-server (without systemd, end its process first: kill $(pgrep -u rabbitmq beam), "
                "then start it). No persistent message in a durable queue is lost"
            )
        return None
    return answer.stdout.strip()


def is_registered() -> bool:
    """Ask the port mapper whether a node of our name runs: request 'z', answer 'Y' where there is one."""
    name = NODE.partition("@")[0].encode()
    try:
        with socket.create_connection(("127.0.0.1", EPMD_PORT), timeout=5) as mapper:
            mapper.sendall(struct.pack(">HB", len(name) + 1, ord("z")) + name)
            answer = mapper.recv(2)
    except OSError:
        return False
    return len(answer) == 2 and answer[1] == 0  # noqa: PLR2004


def evaluate(expression: str) -> str:
    """Evaluate and return what the node printed; a node that does not answer or fails ends the program."""
    answer = call(f"{expression}.")
    if answer is None:
        fail(f"{NODE} does not answer")
    if not answer.startswith("{ok,"):
        fail(f"the node could not do it: {answer[:2000]}")
    return answer.removeprefix("{ok,").removesuffix("}").strip()


def decoded(answer: str) -> Any:  # noqa: ANN401 - JSON
    """Return the JSON that a node printed in base64."""
    pieces = re.findall(r'"([A-Za-z0-9+/=]*)"', answer)
    if not pieces or answer.startswith("{error"):
        fail(f"expected JSON from the node, found: {answer[:2000]}")
    return json.loads(base64.b64decode("".join(pieces)))


def state(settings: dict[str, str], names: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return what the node is now, of its queues those with these names; None where none is up."""
    ready = call("rabbit:is_running().")
    if ready != "{ok, true}":
        return None
    live = ", ".join(
        f'<<"{name}">> => '
        f"(fun() -> try {LIVE_QUESTIONS[name].format(value=value)} catch _:_ -> false end end)()"
        for name, value in settings.items()
        if name in LIVE
    )
    question = STATE.format(
        live=live, names=", ".join(map(binary, names)), printed=PRINTED.format(term="State")
    )
    answer = call(question.replace("\n", " "))
    if answer is None:
        return None
    found: dict[str, Any] = decoded(answer)
    return found | {"identity": identity(found["pid"])}


def identity(pid: str) -> str:
    """Return what tells a process from every other one: its number, when it began (ticks), and the boot."""
    began = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return f"{pid} {began} {Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()}"


def binary(text: str) -> str:
    """Return a text as Erlang writes a binary, whatever is in it."""
    return f"<<{','.join(str(byte) for byte in text.encode())}>>"


def epmd_is_open() -> bool:
    """Tell whether others reach the port mapper; it asks for no login and tells every node's port."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        lines = table.read_text(encoding="ascii").splitlines()[1:] if table.exists() else []
        for fields in (line.split() for line in lines):
            address, _, port = fields[1].partition(":")
            here = address.endswith(("7F", "0100007F")) or address == "0" * 24 + "01000000"
            if fields[3] == LISTENING and int(port, 16) == EPMD_PORT and not here:
                return True
    return False
