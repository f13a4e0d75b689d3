"""What the tests of files/celeryconfig share."""

from pathlib import Path

from celery import Celery

SOURCE = Path(__file__).parents[2] / "files" / "celeryconfig"
NASTY = """p@ss:w/or?d#%25&;$`"'\\ é+"""


def broker_of(result):
    """Describe the same server in the other role."""
    return {
        name.replace("RESULT", "BROKER"): value
        for name, value in result.items()
        if name.startswith("RESULT_") and name != "RESULT_EXPIRES_SECONDS"
    }


def settings(module):
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def app_of(module):
    app = Celery(set_as_current=False)
    app.config_from_object(module)
    return app
