import platform

import torch


def pytest_configure(config):
    config.addinivalue_line("markers", "large: a shape of the paper's size; -m 'not large' leaves them out")


def pytest_benchmark_update_machine_info(config, machine_info):
    """Add what the figures depend on, and leave out the machine's name and its CPU's two hundred flags."""
    for name in ("node", "release"):
        machine_info.pop(name, None)
    machine_info["cpu"].pop("flags", None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["libc"] = " ".join(platform.libc_ver())


