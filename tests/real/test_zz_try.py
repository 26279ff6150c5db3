import logging, time
from tests.clients.notebook import notebook
from tests.clients.terminal import kernelbridge
def test_x(rig, bridge_env, caplog):
    caplog.set_level(logging.DEBUG, "kernelbridge")
    with notebook(bridge_env) as nb:
        nb.run("1")
        print(kernelbridge(bridge_env, "stop", "--all"))
        t=time.time()
        while time.time()-t<20 and nb.manager.is_alive(): time.sleep(.5)
        print("alive", nb.manager.is_alive(), time.time()-t, nb.manager.provisioner._kernel, nb.manager.provisioner._kernel._attachment)
        for r in caplog.records: print(r.relativeCreated, r.name, r.getMessage(), r.exc_info); 
        import traceback
        for r in caplog.records:
            if r.exc_info: traceback.print_exception(r.exc_info[1])
