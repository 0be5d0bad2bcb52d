"""The table of the fastest backends for GPUs follows from the committed results."""

from dataclasses import replace

from dmlfast.bench.report import write_csv

from dmlfast.ops import fastest
from tests.bench.test_report import ROW
from tools import fastest as command


def test_the_table_follows_from_the_results(monkeypatch, tmp_path):
    committed = fastest.TABLE.read_text()
    monkeypatch.setattr(fastest, "TABLE", tmp_path / "fastest.csv")
    command.main([])
    assert fastest.TABLE.read_text() == committed


def test_the_faster_is_taken_where_both_were_measured(monkeypatch, tmp_path):
    def row(provider, n, milliseconds):
        return replace(
            ROW,
            machine="A-GPU",
            provider=provider,
            n=n,
            d=64,
            dtype="bfloat16",
            median_ms=milliseconds,
        )

    monkeypatch.setattr(fastest, "TABLE", tmp_path / "fastest.csv")
    results = tmp_path / "gpu.csv"
    times = {"dmlfast-triton": (2.0, 1.0, 3.0), "dmlfast-cuda": (1.0, 2.0, None), "naive": (0.1,)}
    rows = [
        row(provider, n, ms)
        for provider, found in times.items()
        for n, ms in zip((128, 4096, 99), found, strict=False)
    ]
    write_csv(results, rows)
    command.main([str(results)])
    op = ROW.op
    assert fastest.TABLE.read_text().split() == [
        "gpu,op,dtype,n,d,impl",
        f"A-GPU,{op},bfloat16,128,64,cuda",
        f"A-GPU,{op},bfloat16,4096,64,triton",
    ]
