"""Raw access to result stores: read everything in order, put what is absent; no Celery in between."""
