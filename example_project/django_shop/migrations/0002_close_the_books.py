"""An entry for beat: `close_the_books`, every five seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from django.db import migrations

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def add(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:  # noqa: ARG001  # as Django calls it
    """Add it."""
    seconds, _ = apps.get_model("django_celery_beat", "IntervalSchedule").objects.get_or_create(
        every=5, period="seconds"
    )
    apps.get_model("django_celery_beat", "PeriodicTask").objects.get_or_create(
        name="close-the-books",
        defaults={"task": "example_project.django_shop.tasks.close_the_books", "interval": seconds},
    )


class Migration(migrations.Migration):
    """Adds a row, and leaves it there when it is unapplied."""

    dependencies: ClassVar[list[tuple[str, str]]] = [
        ("django_shop", "0001_initial"),
        ("django_celery_beat", "0001_initial"),
    ]
    operations: ClassVar[list[migrations.RunPython]] = [migrations.RunPython(add, migrations.RunPython.noop)]
