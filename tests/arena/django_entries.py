"""`python -m tests.arena.django_entries '{"name": seconds}'`: migrates, and writes entries; of 0 s: disabled."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Do it."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.arena.django_project"
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    for name, seconds in json.loads(sys.argv[1]).items():
        if not seconds:
            entry = PeriodicTask.objects.get(name=name)
            entry.enabled = False
            entry.save()
            continue
        interval, _ = IntervalSchedule.objects.get_or_create(every=seconds, period=IntervalSchedule.SECONDS)
        values = {"task": "run", "args": json.dumps([name]), "queue": "ticks", "interval": interval}
        PeriodicTask.objects.update_or_create(name=name, defaults=values)


if __name__ == "__main__":
    main()
