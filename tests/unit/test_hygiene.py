"""What holds for the whole bundle, without a host: specs, contracts and pages fit each other."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (PROJECT / "roles").iterdir() if (path / "tasks").is_dir())
BACKENDS = [role for role in ROLES if (PROJECT / "roles" / role / "tasks" / "connection.yml").exists()]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def specification(role: str) -> dict[str, Any]:
    return dict(load(PROJECT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"])


def text_of(role: str) -> str:
    return "\n".join(
        path.read_text()
        for path in (PROJECT / "roles" / role).rglob("*")
        if path.is_file()
        and path.suffix in (".yml", ".j2", ".sh")
        and path.parent.name not in ("meta", "defaults")
    )


def test_there_are_roles_and_backends() -> None:
    assert {"tls", "firewall", "systemd_unit", "backup", "migrations", "celery"} <= set(ROLES)
    assert BACKENDS


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_specified_and_used(role: str) -> None:
    defaults = load(PROJECT / "roles" / role / "defaults" / "main.yml") or {}
    entries = specification(role)
    options = {name for entry in entries.values() for name in entry.get("options", {})}
    text = text_of(role) + (PROJECT / "roles" / role / "defaults" / "main.yml").read_text()
    for name in defaults:
        assert name in options, f"{role}: {name} has a default but no specification"
        assert len(re.findall(rf"\b{name}\b", text)) >= 2, f"{role}: nothing uses {name}"


@pytest.mark.parametrize("role", ROLES)
def test_every_specified_option_is_the_roles_own_and_described(role: str) -> None:
    for entry_name, entry in specification(role).items():
        assert entry.get("short_description"), f"{role}: {entry_name}"
        for name, option in entry.get("options", {}).items():
            assert option.get("description"), f"{role}: {name}"
            assert option.get("type"), f"{role}: {name}"


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_has_its_task_file(role: str) -> None:
    for entry in specification(role):
        assert (PROJECT / "roles" / role / "tasks" / f"{entry}.yml").exists(), f"{role}: {entry}"


def test_every_task_file_that_others_call_has_an_entry() -> None:
    sources = [*(PROJECT / "playbooks").rglob("*.yml"), *(PROJECT / "roles").rglob("tasks/*.yml")]
    for source in sources:
        for role, entry in re.findall(r"name: ([a-z_]+)\n\s+tasks_from: ([a-z_]+)", source.read_text()):
            if role in ROLES:
                assert entry in specification(role), f"{source.name} calls {role}: {entry}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_is_whole(backend: str) -> None:
    for needed in (
        f"roles/{backend}/README.md",
        f"roles/{backend}/tasks/validate.yml",
        f"roles/{backend}/tasks/check.yml",
        f"roles/{backend}/tasks/backup.yml",
        f"roles/{backend}/tasks/restore.yml",
        f"files/celeryconfig/{backend}.py",
        f"docs/{backend}.md",
        f"molecule/{backend}/molecule.yml",
        f"requirements/celery-{backend}.txt",
    ):
        assert (PROJECT / needed).exists(), needed
    for module in (f"smoke/refusals/{backend}", f"doctor/servers/{backend}"):
        source = PROJECT / "src" / "celery_results" / module
        assert source.with_suffix(".py").exists() or source.is_dir(), module
    topology = (PROJECT / "inventory/group_vars/all/topology.yml").read_text()
    assert f"groups['{backend}']" in topology


def test_the_celery_role_branches_on_no_backends_name() -> None:
    names = "redis|valkey|postgresql|mysql|sqlite|rabbitmq|mongodb"
    quoted = rf"['\"](?:{names})['\"]"
    comparison = re.compile(rf"(?:[!=]=|\bin\b)\s*[\[(]?\s*{quoted}|{quoted}\s*(?:[!=]=|\bin\b)")
    for path in (PROJECT / "roles" / "celery").rglob("*"):
        if path.is_file() and path.suffix in (".yml", ".j2"):
            assert not comparison.search(path.read_text()), path
            assert not re.search(rf"(?:{names})", path.name), path


def test_groups_are_read_in_one_place() -> None:
    for path in (PROJECT / "roles").rglob("*"):
        if path.suffix in (".yml", ".j2", ".md"):
            assert not re.search(r"\bgroups(\[|\.)", path.read_text()), path


def test_sizes_that_a_reader_can_hold() -> None:
    def lines(path: Path) -> int:
        return sum(1 for line in path.read_text().splitlines() if line.strip())

    for path in (PROJECT / "roles").rglob("defaults/main.yml"):
        assert lines(path) <= 60, path
    for path in (PROJECT / "roles").rglob("tasks/*.yml"):
        assert lines(path) <= 80, path
    for path in (PROJECT / "src").rglob("*.py"):
        assert lines(path) <= 400, path


def test_no_error_is_swallowed() -> None:
    for path in [
        *(PROJECT / "roles").rglob("*.yml"),
        *(PROJECT / "playbooks").rglob("*.yml"),
        PROJECT / "site.yml",
    ]:
        assert not re.search(r"ignore_errors:|failed_when: *false", path.read_text()), path


@pytest.mark.parametrize("path", sorted((PROJECT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_requirements_are_hashed_and_name_no_index(path: Path) -> None:
    text = path.read_text()
    assert "http" not in text
    pins = re.findall(r"^[a-z0-9-]+(?:\[[a-z,]+\])?==", text, flags=re.MULTILINE)
    assert pins
    assert text.count("--hash=sha256:") >= len(pins)


def test_every_link_between_the_pages_resolves() -> None:
    pages = [
        *PROJECT.glob("*.md"),
        *(PROJECT / "docs").glob("*.md"),
        *(PROJECT / "roles").glob("*/README.md"),
    ]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(PROJECT)} links to {target}"


def test_every_scenario_runs_over_the_same_connection() -> None:
    """A list in molecule.yml replaces the base's: one that forgets an inventory takes twice the time."""
    base = yaml.safe_load((PROJECT / ".config/molecule/config.yml").read_text())
    wanted = [
        argument
        for argument in base["ansible"]["executor"]["args"]["ansible_playbook"]
        if argument.startswith("--inventory=")
    ]
    assert wanted
    for path in (PROJECT / "molecule").glob("*/molecule.yml"):
        scenario = yaml.safe_load(path.read_text())
        arguments = scenario.get("ansible", {}).get("executor", {}).get("args", {}).get("ansible_playbook")
        assert arguments is None or set(wanted) <= set(arguments), path
