import time, signal
from tests.faults.scenes import *
def test_probe(cluster):
    c = cluster("rabbitmq")
    t0=time.monotonic()
    leader, standby = leader_and_standby(c)
    print("scene", time.monotonic()-t0, leader.family, leader.children, leader.keeper)
    token = c.token("highlander")
    pt = c.token("ticker")
    leader.send(signal.SIGKILL)
    acts(c, "ticker", pt); acts(c, "highlander", token)
    print("taken", time.monotonic()-t0)
    nothing_left(leader)
    c.referee().verdict()
    print(gap(c,"ticker",pt), gap(c,"highlander",token), time.monotonic()-t0)
    assert 0
