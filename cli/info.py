"""`dmlfast info`: versions, the machine, and which backends are usable."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from dmlfast.text import counted

PACKAGES = (
    "torch",
    "numpy",
    "triton",
    "faiss-cpu",
    "faiss-gpu",
    "timm",
    "torchvision",
    "pytorch-metric-learning",
)


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(as_json: bool) -> None:
    """Show versions, devices and usable backends.

    For a backend that is not usable here, the reason is shown.
    """
    found = collect()
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def collect() -> dict[str, dict[str, Any]]:
    """Versions, machine and backends, as plain values; None for a package that is not installed."""
    import torch
    from dmlfast.bench.machine import cores, cpu_name, memory_bytes

    import dmlfast
    from dmlfast.ops import dispatch, native, why_not

    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    isa = None if native.why_no_cpu() else native.cpu_library().dml_cpu_isa().decode()
    return {
        "versions": {
            "dmlfast": dmlfast.__version__,
            "python": platform.python_version(),
            **{name: _installed(name) for name in PACKAGES},
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu_name(),
            "cores": cores(),
            "memory_gib": round(memory_bytes() / 2**30, 1),
            "torch_threads": torch.get_num_threads(),
            "cpu_kernels": isa,
            "gpus": gpus,
            "torch_cuda": torch.version.cuda,
        },
        "backends": {name: why_not(name) for name in dispatch.BACKENDS},
    }


def _installed(package: str) -> str | None:
    """The version of a package, which is not imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """The same as a person reads it."""
    machine = found["machine"]
    cuda = machine["torch_cuda"]
    no_gpu = f"none seen by CUDA {cuda}" if cuda else "none: this torch has no CUDA"
    sections = {
        "versions": {name: text or "not installed" for name, text in found["versions"].items()},
        "machine": {
            "system": machine["system"],
            "cpu": f"{machine['cpu']}, {counted(machine['cores'], 'core')}",
            "memory": f"{machine['memory_gib']} GiB",
            "threads": f"{machine['torch_threads']}, as set in torch",
            "kernels": machine["cpu_kernels"] or "not built",
            "gpu": ", ".join(machine["gpus"]) or no_gpu,
        },
        "backends": {
            name: f"not usable: {reason}" if reason else "usable"
            for name, reason in found["backends"].items()
        },
    }
    wide = max(len(name) for section in sections.values() for name in section)
    lines: list[str] = []
    for title, section in sections.items():
        lines += ["", title] if lines else [title]
        lines += [f"  {name:{wide}}  {value}" for name, value in section.items()]
    return lines
