"""The Celery app, as Django's part of Celery's documentation has it, and the plugin."""

from __future__ import annotations

import os

from celery import Celery

from celery_highlander import Highlander

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.django_shop.settings")

app = Celery("django_shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["example_project.django_shop"])

# For `celery worker` the settings alone would do; web processes that ask `whereis`, or send singleton tasks of the
# scope "queue", need it installed.
highlander = Highlander(app)
