"""What we take from others is looked at, and each look finds what it is for."""

import base64
import hashlib
import json
import subprocess
import sys
from email.message import Message
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

import pytest

from tools.supply_chain.__main__ import UNASKED, WRONG, audit
from tools.supply_chain.licences import check_licences, is_strict, named
from tools.supply_chain.locks import Pin, check_locks, read_lock
from tools.supply_chain.startup_files import unexpected_files
from tools.supply_chain.vulnerabilities import look_up

ROOT = Path(__file__).parents[2]
HASH = "a" * 64
PLACE = "//example.test"
GOOD = f"""\
# a remark, with https:{PLACE}
one==1.0 \\
    --hash=sha256:{HASH} \\
    --hash=sha256:{HASH}
    # via -r x.in
two[extra]==2.0rc1 ; python_full_version >= '3.12' and sys_platform == 'linux' \\
    --hash=sha256:{HASH}
"""


def test_the_locks_of_this_house_are_in_order() -> None:
    assert check_locks(ROOT / "requirements") == []


def test_a_lock_in_order_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(GOOD)
    pins, wrong = read_lock(tmp_path / "x.txt")
    assert wrong == []
    assert pins == [Pin("one", "1.0", (HASH, HASH)), Pin("two", "2.0rc1", (HASH,))]


@pytest.mark.parametrize(
    "line",
    [
        "three==3.0",
        "three==3.0 --hash=md5:" + "a" * 32,
        "three>=3.0 --hash=sha256:" + HASH,
        "three==3.0,<4 --hash=sha1:" + "a" * 40,
        f"three @ https:{PLACE}/three-3.0.tar.gz --hash=sha256:{HASH}",
        f"git+https:{PLACE}/three",
        f"--index-url https:{PLACE}/simple",
        "--find-links /srv/wheels",
        "--no-binary three",
        "-r other.txt",
        "-e .",
    ],
)
def test_a_line_that_is_no_pin_with_hashes_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.txt").write_text(GOOD + line + "\n")
    assert ["x.txt:8" in problem for problem in check_locks(tmp_path)] == [True]


def test_an_input_without_a_lock_and_an_empty_lock_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.in").write_text("one\n")
    assert "make lock" in check_locks(tmp_path)[0]
    (tmp_path / "x.txt").write_text("")
    assert check_locks(tmp_path) == ["x.txt: no pins"]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment with one package, whose licence is MIT."""
    site = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    info = site / "one-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: one\nVersion: 1.0\nLicense-Expression: MIT\n")
    (info / "RECORD").write_text("one/__init__.py,,\none-1.0.dist-info/METADATA,,\n")
    return tmp_path / "env"


def digest_of(content: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()


def plant(environment: Path, name: str, content: str, *, recorded: bool) -> None:
    [site] = environment.glob("lib/*/site-packages")
    (site / name).parent.mkdir(exist_ok=True)
    (site / name).write_text(content)
    if recorded:
        with (site / "one-1.0.dist-info" / "RECORD").open("a") as record:
            record.write(f"{name},{digest_of(content)},{len(content)}\n")


def test_an_environment_without_such_files_is_in_order(environment: Path) -> None:
    assert unexpected_files(environment) == []


@pytest.mark.parametrize("name", ["x.pth", "sitecustomize.py", "usercustomize.pyc", "sitecustomize.abi3.so"])
def test_a_planted_file_is_found(environment: Path, name: str) -> None:
    plant(environment, name, "import os", recorded=False)
    [problem] = unexpected_files(environment)
    assert f"{name}: no installed package brought it" in problem


def test_a_file_that_a_package_recorded_is_found_too_until_somebody_looked_at_it(environment: Path) -> None:
    plant(environment, "x.pth", "import os", recorded=True)
    [problem] = unexpected_files(environment)
    assert "one brought it, and nobody looked at it" in problem
    assert unexpected_files(environment, {"x.pth": digest_of("import os")}) == []


def test_a_known_name_makes_nothing_known_that_holds_something_else(environment: Path) -> None:
    """A poisoned release may bring its code in the very file that was looked at, with a record that is right."""
    plant(environment, "distutils-precedence.pth", "import os; os.system('x')", recorded=True)
    [problem] = unexpected_files(environment)
    assert "not the one that somebody looked at" in problem


@pytest.mark.parametrize("recorded", [True, False])
def test_a_package_that_is_imported_at_the_start_is_found_whoever_brought_it(
    environment: Path, *, recorded: bool
) -> None:
    plant(environment, "sitecustomize/__init__.py", "import os", recorded=recorded)
    [problem] = unexpected_files(environment)
    assert "sitecustomize: Python imports it at every start" in problem


def test_every_kind_that_python_imports_is_one_that_is_looked_for(environment: Path) -> None:
    for number, suffix in enumerate(all_suffixes()):
        plant(environment, f"usercustomize{suffix}", "", recorded=False)
        assert len(unexpected_files(environment)) == number + 1


def test_this_environment_is_in_order() -> None:
    assert unexpected_files(Path(sys.prefix)) == []


def test_a_known_file_that_was_changed_is_found(environment: Path) -> None:
    plant(environment, "x.pth", "import os", recorded=True)
    plant(environment, "x.pth", "import os, socket", recorded=False)
    [problem] = unexpected_files(environment, {"x.pth": digest_of("import os")})
    assert "not as one brought it" in problem


def test_no_environment_is_no_clean_one(tmp_path: Path) -> None:
    assert unexpected_files(tmp_path / "none") != []


@pytest.mark.parametrize(
    ("licence", "strict"),
    [
        ("MIT", False),
        ("GPL-3.0-only", True),
        ("AGPL-3.0-or-later", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Affero General Public License v3", True),
        ("LGPL-3.0-only", False),
        ("GNU Lesser General Public License v2 (LGPLv2)", False),
        ("MIT OR GPL-2.0-only", False),
        ("Apache-2.0 AND GPL-2.0-only", True),
        ("MPL-2.0", False),
    ],
)
def test_licences_are_told_apart(licence: str, *, strict: bool) -> None:
    assert is_strict(licence) == strict


def test_the_expression_counts_before_classifiers_and_texts_are_no_names() -> None:
    said = Message()
    said["License"] = "any text, long: " + "GPL-compatible " * 50
    assert named(said) == []
    said["Classifier"] = "License :: OSI Approved :: BSD License"
    assert named(said) == ["BSD License"]
    said["License-Expression"] = "MIT"
    assert named(said) == ["MIT"]


def test_a_package_under_the_gpl_or_under_nothing_is_named(environment: Path) -> None:
    [metadata] = environment.glob("lib/*/site-packages/one-1.0.dist-info/METADATA")
    pins = [Pin("One", "1.0", ()), Pin("not-here", "1.0", ())]
    assert check_licences(pins, environment) == []
    metadata.write_text("Metadata-Version: 2.4\nName: one\nVersion: 1.0\nLicense-Expression: AGPL-3.0-only\n")
    assert check_licences(pins, environment) == ["one: AGPL-3.0-only"]
    metadata.write_text("Metadata-Version: 2.4\nName: one\nVersion: 1.0\n")
    assert check_licences(pins, environment) == ["one: its metadata names no licence"]


class PipAudit:
    """pip-audit as it answers."""

    def __init__(self, out: str, err: str = "", code: int = 0) -> None:
        self._done = subprocess.CompletedProcess[str]([], code, out, err)

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        assert {"--require-hashes", "--disable-pip"} <= set(command)
        return self._done


CLEAN: dict[str, Any] = {"name": "one", "version": "1.0", "vulns": []}
SKIPPED = {"name": "two", "skip_reason": "not found"}
STRUCK = {"name": "three", "version": "3.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"]}]}


def answer(*packages: object) -> PipAudit:
    return PipAudit(json.dumps({"dependencies": packages}))


def test_what_the_service_knows_what_it_does_not_and_its_absence_are_told_apart() -> None:
    found = look_up(Path("x.txt"), Path("pip-audit"), answer(CLEAN, SKIPPED, STRUCK))
    assert (found.asked, found.unasked) == (2, ["two: not found"])
    assert found.vulnerable == ["three 3.0: PYSEC-1, mended in 3.1"]
    assert not found.away
    away = look_up(Path("x.txt"), Path("pip-audit"), PipAudit("", "Traceback\nConnectionError: no such host", 1))
    assert (away.asked, away.unasked, away.away) == (0, ["all of x.txt: ConnectionError: no such host"], True)
    missing = look_up(Path("x.txt"), Path("/nowhere/pip-audit"))
    assert (missing.unasked, missing.away) == (["all of x.txt: FileNotFoundError"], False)


@pytest.fixture
def house(tmp_path: Path, environment: Path) -> tuple[Path, Path, Path]:
    """Requirements, an environment, and tools of which cyclonedx-py is a stand-in."""
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "runtime.in").write_text("one\n")
    (folder / "runtime.txt").write_text(f"one==1.0 --hash=sha256:{HASH}\n")
    tool = environment / "bin" / "cyclonedx-py"
    tool.parent.mkdir()
    bill = {"bomFormat": "CycloneDX", "components": [{"name": "one", "version": "1.0", "description": "line 1"}]}
    loop = 'for last; do [ "$before" = -o ] && out=$last; before=$last; done'
    tool.write_text(f"#!/bin/sh\n{loop}\necho '{json.dumps(bill)}' > \"$out\"\n")
    tool.chmod(0o755)
    return folder, environment, tmp_path / "out" / "sbom.json"


def run_audit(house: tuple[Path, Path, Path], pip_audit: PipAudit) -> int:
    folder, environment, out = house
    return audit(folder, environment, tools=environment, out=out, run=pip_audit)


def test_all_is_well(house: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_audit(house, answer(CLEAN)) == 0
    assert "WRONG" not in capsys.readouterr().out
    [component] = json.loads(house[2].read_text())["components"]
    assert component == {"name": "one", "version": "1.0", "licenses": [{"license": {"name": "MIT"}}]}


def test_a_service_that_cannot_be_asked_has_its_own_code_and_hides_nothing(
    house: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    away = PipAudit("", "ConnectionError: no such host", 1)
    assert run_audit(house, away) == UNASKED
    shown = capsys.readouterr().out
    assert "cannot be reached from this machine" in shown
    assert "no known vulnerability" not in shown
    assert "ok     every lock" in shown
    plant(house[1], "x.pth", "import os", recorded=False)
    assert run_audit(house, away) == WRONG


def test_a_network_that_keeps_the_service_away_is_told_in_one_line_that_blames_no_package(
    house: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mirror may answer 404 for every package, which pip-audit takes for a package that is not on PyPI."""
    assert run_audit(house, answer(SKIPPED, {"name": "one", "skip_reason": "not found"})) == UNASKED
    [line] = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("ok ")]
    assert line.startswith("UNASKED  vulnerabilities: the service that knows of them cannot be reached")
    assert "make audit" in line


def test_what_alone_could_not_be_asked_and_a_tool_that_fails_are_named(
    house: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_audit(house, answer(CLEAN, SKIPPED)) == UNASKED
    assert "two: not found" in capsys.readouterr().out
    assert run_audit(house, PipAudit("", "error: no such option", 2)) == UNASKED
    shown = capsys.readouterr().out
    assert "all of runtime.txt: error: no such option" in shown
    assert "cannot be reached" not in shown


def test_how_much_of_what_is_shipped_could_be_looked_at_is_said(
    house: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with (house[0] / "runtime.txt").open("a") as lock:
        lock.write(f"away==1.0 --hash=sha256:{HASH}\n")
    run_audit(house, answer(CLEAN))
    assert "(1 of 2 packages are installed here to be looked at)" in capsys.readouterr().out


def test_a_known_vulnerability_is_wrong(house: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_audit(house, answer(STRUCK)) == WRONG
    assert "PYSEC-1" in capsys.readouterr().out
