import json

import pytest
from dmlfast.cli.main import main

import dmlfast
from dmlfast.ops import available, why_not


def test_info_tells_versions_machine_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"dmlfast {dmlfast.__version__}" in [" ".join(line.split()) for line in lines]
    assert len(lines) < 40
    assert all(len(line) <= 120 for line in lines)
    for name in available():
        assert [name, "usable"] in [line.split() for line in lines]
    cuda = next(line for line in lines if line.split()[:1] == ["cuda"])
    assert (why_not("cuda") or "usable") in cuda


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["dmlfast"] == dmlfast.__version__
    assert found["backends"]["reference"] is None
    assert found["backends"]["triton"] == why_not("triton")
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["cpu_kernels"] in ("avx512", "avx2", "generic", None)
