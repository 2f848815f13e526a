import subprocess
import sys

import mtron_optim


def test_every_public_name_resolves():
    assert mtron_optim.__all__ == sorted(mtron_optim.__all__)
    for name in mtron_optim.__all__:
        value = getattr(mtron_optim, name)
        assert callable(value), name
        assert getattr(mtron_optim, name) is value, f"{name} is shadowed by a module"


def test_configurations_need_no_torch():
    code = (
        "import sys, mtron_optim; "
        "mtron_optim.OptimConfig(), mtron_optim.KernelConfig(); "
        "s = mtron_optim.ScheduleConfig(total_steps=10); mtron_optim.learning_rate_scale(s, 3); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_wrong_name_is_an_attribute_error():
    assert not hasattr(mtron_optim, "Muoon")
