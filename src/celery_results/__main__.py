"""``python -m celery_results``: the same as ``celery-results``."""

import sys

from celery_results.cli import main

if __name__ == "__main__":
    sys.exit(main())
