from lit_tbptt.cli.reports import result_table


def test_counts_shares_and_what_a_diverged_model_costs():
    table = result_table({"validation": {"nats": 1.25, "targets": 12345}, "test": {"nats": float("inf"), "ppl": 1e300}})
    assert [line.split() for line in table.splitlines()] == [
        ["validation", "test"],
        ["nats", "1.2500", "inf"],
        ["targets", "12,345"],
        ["ppl", "1e+300"],
    ]
    assert "nan" in result_table({"test": {"nats": float("nan")}})
