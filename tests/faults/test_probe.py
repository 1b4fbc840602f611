import os, signal, time, pytest
from tests.faults import scenes
from tests.faults.test_message_storm import *
from tests.faults.test_message_storm import _kill_keeper, _quit_worker
del test_every_message_is_processed_and_none_by_two_at_once
@pytest.mark.parametrize("inject", [_kill_keeper, _quit_worker])
def test_p(cluster, inject):
    shop = cluster("redis", processes={})
    for _ in range(2):
        shop.start(*scenes.QUIET, concurrency=2)
    leader = shop.leader(QUEUE, timeout=scenes.PATIENCE)
    scenes.ready(*shop.workers)
    token = shop.token(QUEUE)
    with storm(shop) as sent:
        scenes.acts(shop, QUEUE, token - 1)
        inject(shop, leader)
        l2 = shop.leader(QUEUE, other_than=token, timeout=scenes.PATIENCE)
        time.sleep(8)
        print("leader", leader.pid, leader.is_running, leader.family, shop.lock_sessions())
        if leader.is_running:
            os.kill(leader.pid, signal.SIGUSR2)
            for p in leader.family:
                if p == leader.keeper: os.kill(p, signal.SIGUSR2)
        time.sleep(1)
    assert 0
