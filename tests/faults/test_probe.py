import os, signal, time, pytest
from tests.faults import scenes
from tests.faults import test_message_storm as m

scenes.PATIENCE = 8
ORIG = list(m.KINDS)


@pytest.mark.parametrize("rep", [1, 2, 3])
@pytest.mark.parametrize("kind", ORIG, ids=lambda k: k[0].__name__)
def test_p(cluster, kind, rep, monkeypatch):
    monkeypatch.setattr(m, "KINDS", [kind])
    made = []

    def c(*a, **k):
        s = cluster(*a, **k)
        made.append(s)
        return s

    try:
        m.test_every_message_is_processed_and_none_by_two_at_once(c, "redis")
    except BaseException as e:
        shop = made[0]
        from kombu import Connection

        with Connection(shop.conf["broker_url"]) as cc:
            r = cc.channel().client
            print("LLEN", r.llen("highlander"), r.hlen("unacked"))
        ended = {int(x.task_id) for x in shop.referee().task_runs("highlander") if x.finished}
        missing = [n for n in range(1, max(ended)) if n not in ended]
        print("MISSING", kind[0].__name__, missing, "of", max(ended), repr(e)[:150].replace("\n", " "))
        for n in missing[:20]:
            for w in shop.workers:
                for line in w.log.splitlines():
                    if f"task-{n}]" in line or f"task-{n} " in line:
                        print("  MISSED", w.name, line[:160])
            for x in shop.referee().task_runs("highlander"):
                if x.task_id == str(n):
                    print("  MISSED", x)
        raise
