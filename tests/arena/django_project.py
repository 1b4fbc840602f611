"""The settings of a Django project that has nothing but django-celery-beat, on the arena's database."""

from __future__ import annotations

import json
import os

from sqlalchemy import make_url

_url = make_url(json.loads(os.environ["HIGHLANDER_ARENA_CONF"])["highlander_url"])

SECRET_KEY = "of the arena"
INSTALLED_APPS = ["django_celery_beat"]
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.database,
        "USER": _url.username,
        "PASSWORD": _url.password or "",
        "HOST": _url.host,
        "PORT": _url.port,
    }
}
