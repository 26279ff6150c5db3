import time, pytest
from tests.real.test_vscode_raw import *
@pytest.mark.timeout(580)
@pytest.mark.parametrize('k', range(3))
def test_dev(rig, code, k):
    code.ask("start")
    t=time.time()
    for i in range(60):
        r=code.ask("flood", timeout_ms=20000, timeout=40)
        assert r['count']==1000 and r['dropped']=={}, r
    print('floods', time.time()-t)
