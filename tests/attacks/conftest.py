"""What the attacks share: the real commands, as a person or a thief types them."""

import sys

import pytest

import coordinator.cli.main
import sites.cli.main


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a real command in this process; returns its exit status and all it said."""
    monkeypatch.setenv("COLUMNS", "500")

    def ended(command, *arguments):
        main = {"ddm-site": sites.cli.main.main, "ddm-coord": coordinator.cli.main.main}[command]
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        shown = capsys.readouterr()
        return caught.value.code or 0, shown.out, shown.err

    return ended
