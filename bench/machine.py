"""The machine that figures are measured on: never its name on a network."""

import math
import os
import platform
import re
from pathlib import Path

from dmlfast.text import counted


def cpu_name() -> str:
    """The model of the CPU, as it calls itself; by its numbers where that is of all of a make."""
    try:
        known = Path("/proc/cpuinfo").read_text()
    except OSError:
        known = ""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", known.partition("\n\n")[0], re.M))
    name = fields.get("model name") or platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", "", name, flags=re.I).strip()
    if not re.search(r"\d", name) and {"cpu family", "model"} <= fields.keys():
        name = f"{name} (family {fields['cpu family']}, model {fields['model']})"
    return name


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_name() -> str:
    """The model of the CPU and how many cores there are."""
    return f"{' '.join(cpu_name().split())}, {counted(cores(), 'core')}"


def machine_slug(machine: str) -> str:
    """The name of a machine as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def memory_bytes() -> int:
    """The size of the main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_clock() -> tuple[float, float]:
    """CPU seconds that have passed on all cores, and those that other processes used."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return math.nan, math.nan
    idle, total = sum(ticks[3:5]), sum(ticks)
    used = os.times()
    scale = os.sysconf("SC_CLK_TCK")
    return total / scale, (total - idle) / scale - used.user - used.system


def busy_elsewhere(since: tuple[float, float]) -> float | None:
    """The share of all cores that other processes used since that `cpu_clock`."""
    (before, others_before), (now, others) = since, cpu_clock()
    return max(0.0, others - others_before) / (now - before) if now > before else None
