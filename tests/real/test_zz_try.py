import pytest
from tests.real import test_terminal as t
@pytest.mark.parametrize("n", range(15))
def test_x(rig, bridge_env, n):
    t.test_logs_shows_what_the_process_itself_wrote_and_no_output_of_cells(rig, bridge_env)
