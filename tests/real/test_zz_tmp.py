import pytest, time
from tests.clients.driver import NodeClient
from tests.clients.goodbyes import expect_left
from tests.clients.specs import installed_spec

@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6])
def test_x(rig, bridge_env, tmp_path, delay):
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    spec = installed_spec(bridge_env)
    with NodeClient("vscode_raw.mjs", spec.settings(cwd=str(tmp_path))) as code:
        code.ask("start")
        code.execute("open('/tmp/kept', 'w').write('here')")
        before = [one.id for one in rig.engine.kernels()]
        with rig.proxy.delay(delay):
            again = code.ask("restart", timeout=90)
            print("RESULT", delay, again["old_exit"]["seconds"], code.execute("import os; os.path.exists('/tmp/kept')")["screen"], [one.id for one in rig.engine.kernels()] == before)
    rig.engine.sweep()
