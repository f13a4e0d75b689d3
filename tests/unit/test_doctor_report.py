"""The register, its page in the documentation, and the command."""

import importlib
import json
import pkgutil
import re

import pytest
from rich.console import Console

import celery_results.doctor
from celery_results.cli import main
from celery_results.doctor import servers
from celery_results.doctor.examine import examine
from celery_results.doctor.findings import REGISTER, Finding, Severity, info
from celery_results.doctor.report import as_json, print_report
from celery_results.doctor.subject import Subject
from celery_results.redaction import Redactor

SETTINGS = """
result_backend = "rpc://"
result_persistent = True
broker_transport_options = {"confirm_publish": True}
"""


@pytest.fixture(scope="module")
def register():
    prefix = f"{celery_results.doctor.__name__}."
    for module in pkgutil.walk_packages(celery_results.doctor.__path__, prefix):
        importlib.import_module(module.name)
    return REGISTER


def documented(root):
    """Read code -> (severity, title) from the page."""
    page = (root / "docs" / "doctor.md").read_text()
    return {
        code: (severity, title)
        for code, severity, title in re.findall(
            r"^### (CRB\d{3})\n\n\*\*(\w+): (.+)\.\*\* \S", page, re.MULTILINE
        )
    }


def test_every_code_is_documented_and_every_documented_code_exists(register, pytestconfig):
    defined = {code: (kind.severity.value, kind.title) for code, kind in register.items()}
    page = documented(pytestconfig.rootpath)
    assert page == defined
    assert list(page) == sorted(page)


def test_every_code_has_a_number_and_a_remedy(register):
    assert all(re.fullmatch(r"CRB\d{3}", code) for code in register)
    assert all(kind.title and kind.remedy for kind in register.values())


def test_code_is_defined_once():
    with pytest.raises(ValueError, match="defined twice"):
        info("CRB001", "again", "nothing")


def test_severities_are_ordered():
    assert Severity.ERROR.reaches(Severity.WARNING)
    assert Severity.WARNING.reaches(Severity.WARNING)
    assert not Severity.INFO.reaches(Severity.WARNING)
    assert not Severity.WARNING.reaches(Severity.ERROR)


def test_every_server_module_has_what_is_called():
    for module in servers.every():
        kinds = [
            functions
            for names, functions in (
                ("ALIASES", ("check_settings", "check_server")),
                ("BROKER_SCHEMES", ("check_broker_settings", "check_broker")),
            )
            if getattr(module, names, None)
        ]
        assert kinds, f"{module} is neither for results nor for a broker"
        assert all(callable(getattr(module, name)) for functions in kinds for name in functions)


FOUND = [
    Finding("CRB998", Severity.ERROR, "Title one", "found hunter22 there", "do not tell hunter22"),
    Finding("CRB999", Severity.INFO, "Title two", "[bold]no markup[/bold]", "nothing"),
]


def printed(findings):
    console = Console(width=100, record=True, quiet=False, file=None, force_terminal=False, markup=False)
    with console.capture() as capture:
        print_report(findings, "x", Redactor({"hunter22"}), console)
    return capture.get()


def test_list_is_grouped_and_counted():
    text = printed(FOUND)
    assert text.index("ERROR") < text.index("CRB998") < text.index("INFO") < text.index("CRB999")
    assert "docs/doctor.md#crb998" in text
    assert "[bold]no markup[/bold]" in text
    assert text.splitlines()[-1] == "doctor: 1 error, 0 warnings, 1 info"


def test_no_output_holds_a_secret():
    assert "hunter22" not in printed(FOUND)
    assert "hunter22" not in as_json(FOUND, "hunter22", ok=False, redactor=Redactor({"hunter22"}))


def test_check_that_stumbles_is_told_and_hides_no_other():
    found = examine(
        Subject(raw={"result_backend": "rpc://", "broker_transport_options": 7, "result_persistent": True})
    )
    codes = {finding.code for finding in found}
    assert {"CRB001", "CRB402"} <= codes


def test_backend_without_live_checks_is_told():
    found = examine(Subject(raw={"result_backend": "mongodb://h/"}))
    assert "CRB002" in {finding.code for finding in found}


def run(capsys, *arguments):
    code = main(["doctor", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_exit_code_follows_the_threshold(tmp_path, capsys):
    (tmp_path / "celeryconfig.py").write_text(SETTINGS + "result_compression = 'gzip'\n")
    code, out, _ = run(capsys, "--config-directory", tmp_path, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["ok"]
    assert report["counts"] == {"error": 0, "warning": 1, "info": 3}
    code, out, _ = run(capsys, "--config-directory", tmp_path, "--json", "--fail-on", "warning")
    assert code == 1
    assert not json.loads(out)["ok"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://127.0.0.1:1//", "rpc result backend, amqp broker;"),
        ("s3cret:x://h", "rpc result backend, unreadable broker;"),
    ],
)
def test_report_says_which_broker_was_examined(tmp_path, capsys, url, said):
    (tmp_path / "celeryconfig.py").write_text(f"{SETTINGS}broker_url = {url!r}\n")
    _, out, _ = run(capsys, "--config-directory", tmp_path)
    assert said in out
    assert "s3cret" not in out


def test_error_fails_by_default(tmp_path, capsys):
    (tmp_path / "celeryconfig.py").write_text(SETTINGS + "result_expire = 1\n")
    code, out, _ = run(capsys, "--config-directory", tmp_path)
    assert code == 1
    assert "result_expires" in out


@pytest.mark.parametrize(
    ("files", "arguments"),
    [
        ({}, []),
        ({"celeryconfig.py": "raise RuntimeError"}, []),
        ({"celeryconfig.py": SETTINGS, "celery.env": "no assignment"}, []),
        ({"celeryconfig.py": SETTINGS}, ["--env-file", "/nowhere/celery.env"]),
        ({"celeryconfig.py": SETTINGS}, ["--fail-on", "info"]),
    ],
)
def test_what_cannot_be_read_is_exit_code_2(tmp_path, capsys, files, arguments):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, out, err = run(capsys, "--config-directory", tmp_path, *arguments)
    assert code == 2
    assert not out
    assert err


def test_unreadable_monitor_login_is_told(tmp_path, capsys):
    (tmp_path / "celeryconfig.py").write_text('result_backend = "redis://127.0.0.1:1/0"\n')
    (tmp_path / "monitor.env").write_text("no assignment")
    _, out, _ = run(capsys, "--config-directory", tmp_path, "--json")
    (found,) = [finding for finding in json.loads(out)["findings"] if "monitor login" in finding["found"]]
    assert found["code"] == "CRB001"
    assert "monitor.env" in found["remedy"]
