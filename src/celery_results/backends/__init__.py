"""Result backends that put right what Celery's own leave open; each names the gap that it closes."""
