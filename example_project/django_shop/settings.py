"""Django's settings, as small as they can be; what is the plugin's begins with CELERY_HIGHLANDER_."""

from __future__ import annotations

import json
import os
from urllib.parse import unquote, urlsplit

_database = urlsplit(os.environ.get("SHOP_DATABASE_URL", "postgresql://shop@localhost/shop"))

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "only for trying things out")
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
ROOT_URLCONF = "example_project.django_shop.urls"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat", "example_project.django_shop"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _database.path.lstrip("/"),
        "USER": unquote(_database.username or ""),
        "PASSWORD": unquote(_database.password or ""),
        "HOST": _database.hostname or "",
        "PORT": str(_database.port or ""),
        "OPTIONS": {"connect_timeout": 5},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True

CELERY_BROKER_URL = os.environ.get("SHOP_BROKER_URL", "redis://localhost:6379/0")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_ROUTES = {"example_project.django_shop.tasks.enter": {"queue": "highlander"}}

# The plugin takes DATABASES["default"], over a connection of its own.
CELERY_HIGHLANDER_ENGINE = "celery_highlander.contrib.django:engine"
CELERY_HIGHLANDER_PROCESSES = {"price-feed": "example_project.django_shop.tasks:price_feed"}
# Beat beside exactly one worker; its entries are django-celery-beat's, rows of the database.
CELERY_HIGHLANDER_BEAT = True
CELERY_HIGHLANDER_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"

# Any other settings of Celery, as one JSON object.
globals().update(
    {f"CELERY_{name.upper()}": value for name, value in json.loads(os.environ.get("SHOP_SETTINGS", "{}")).items()}
)
