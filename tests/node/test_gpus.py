"""GPU probing against a mock of NVML: no machine with such a device can be had here, so this one module is made up."""

import sys
import types
from types import SimpleNamespace

import pytest

from nunet_cli.node.benchmark import probe_gpus
from nunet_cli.records.capability import Gpu


def mock_nvml(**changes: object) -> types.ModuleType:
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})  # type: ignore[attr-defined]
    behaviour = {
        "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda index: (b"A100", "H100")[index],
        "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(total=2**36),
    }  # fmt: skip
    for name, value in {**behaviour, **changes}.items():
        setattr(module, name, value)
    return module


def test_devices_are_read_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", mock_nvml())
    assert probe_gpus() == (Gpu("NVIDIA", "A100", 2**36), Gpu("NVIDIA", "H100", 2**36))


def test_no_library_and_no_driver_mean_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert probe_gpus() == ()
    broken = mock_nvml()

    def fail() -> None:
        raise broken.NVMLError  # type: ignore[attr-defined]

    broken.nvmlInit = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert probe_gpus() == ()
