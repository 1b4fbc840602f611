import os, signal, time, pytest
from tests.faults import scenes
from tests.faults import test_message_storm as m

scenes.PATIENCE = 8


def test_p(cluster):
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
        import re
        with Connection(shop.conf["broker_url"]) as c:
            r = c.channel().client
            print("LLEN", r.keys("*"), r.llen("highlander"), [re.findall("task-[0-9]+", str(v))[:1] for v in r.hgetall("unacked").values()], r.zrange("unacked_index",0,-1,withscores=True))
        ended = {int(x.task_id) for x in shop.referee().task_runs("highlander") if x.finished}
        missing = [n for n in range(1, max(ended)) if n not in ended]
        print("MISSING", missing)
        for n in missing[:20]:
            for w in shop.workers:
                for line in w.log.splitlines():
                    if f"task-{n}]" in line or f"task-{n} " in line: print(w.name, line[:200])
            for x in shop.referee().task_runs("highlander"):
                if x.task_id == str(n): print(x)
        raise
