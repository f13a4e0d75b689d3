"""tools/docker-engine brings up an engine, also after the last one was killed."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "docker-engine"


class Engine:
    """A second engine beside the machine's own, all of its state below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pid_files = (directory / "docker.pid", directory / "docker/containerd/containerd.pid")
        self.environment = os.environ | {
            "DOCKER_HOST": f"unix://{directory}/docker.sock",
            "DOCKER_ENGINE_RUN_DIRECTORY": str(directory),
            "DOCKER_ENGINE_LOG": str(directory / "dockerd.log"),
            "DOCKER_ENGINE_FLAGS": " ".join(
                (
                    f"--host unix://{directory}/docker.sock",
                    f"--data-root {directory}/data",
                    f"--exec-root {directory}/docker",
                    f"--pidfile {self.pid_files[0]}",
                )
            ),
        }

    def ensure(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def answers(self) -> bool:
        return (
            subprocess.run(
                ["docker", "version"], env=self.environment, capture_output=True, timeout=30, check=False
            ).returncode
            == 0
        )

    def kill(self) -> None:
        for pid_file in self.pid_files:
            if pid_file.exists():
                try:
                    os.kill(int(pid_file.read_text()), signal.SIGKILL)
                except ProcessLookupError:
                    pid_file.unlink()


@pytest.fixture
def engine() -> Iterator[Engine]:
    # Not tmp_path: the path of a socket below it would be too long for the kernel (108 bytes).
    with tempfile.TemporaryDirectory(prefix="crb-engine-", ignore_cleanup_errors=True) as directory:
        second = Engine(Path(directory))
        yield second
        second.kill()


def test_engine_comes_back_after_a_kill(engine: Engine) -> None:
    assert engine.ensure().returncode == 0
    assert engine.answers()
    engine.kill()
    assert not engine.answers()
    # What makes the next start fail: the dead containerd's pid file, naming a pid that is taken.
    containerd_pid_file = engine.pid_files[1]
    containerd_pid_file.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["sleep", "300"]) as taker:
        containerd_pid_file.write_text(str(taker.pid))

        second_start = engine.ensure()

        taker.kill()
    assert second_start.returncode == 0, second_start.stderr
    assert f"removing {containerd_pid_file}" in second_start.stderr
    assert engine.answers()


def test_engine_that_answers_is_left_alone(engine: Engine) -> None:
    assert engine.ensure().returncode == 0
    pid = engine.pid_files[0].read_text()
    again = engine.ensure()
    assert again.returncode == 0
    assert again.stderr == ""
    assert engine.pid_files[0].read_text() == pid
