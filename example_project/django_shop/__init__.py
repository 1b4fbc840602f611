"""The shop as a Django project: `celery -A example_project.django_shop worker -X highlander`."""

from example_project.django_shop.celery import app as celery_app

__all__ = ["celery_app"]
