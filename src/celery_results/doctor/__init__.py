"""What is wrong with a Celery result backend, and what to do about it.

`subject` reads, the check modules judge, `report` prints. What holds for one kind of backend only is a module
in `servers`; every code is defined once, beside the check that gives it, and explained in docs/doctor.md.
"""
