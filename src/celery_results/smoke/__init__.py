"""Prove deployed settings by running real tasks in a real worker, and by attacks that must be refused.

`runner` says in which order, `worker` is the worker process, `application` the app of both sides, `checks`
and `canvas` what is run, `refusals` what must not work, `report` what is printed.
"""
