"""The table of mutations fits the code: each fault still has its place."""

import mutations


def test_every_mutation_is_found(capsys):
    assert mutations.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(mutations.MUTATIONS)
