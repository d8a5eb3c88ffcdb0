"""`python -m libs.keys NAME SCOPES [options]` makes a key, prints it once and stores only its SHA-256."""

import argparse
import sys
from pathlib import Path
from typing import Any

from libs.keys.entries import ALL_SCOPES, KeyFileError, KeyLimits, parse_scopes
from libs.keys.making import create_key
from libs.service_settings import ListenSettings
from libs.settings import SettingsError, load


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libs.keys", description="Make a key and print it once.")
    parser.add_argument("name", help="who will use it, e.g. desk-1")
    parser.add_argument("scopes", help=f"comma-separated, of {', '.join(ALL_SCOPES)}; or all")
    parser.add_argument("--file", type=Path, help="the key file (default: API_KEYS_FILE, else LOCAL_STATE/keys.json)")
    plane = parser.add_argument_group("for /v1; what is not said is not limited")
    plane.add_argument("--models", help="comma-separated: the models it may ask for (default: every one)")
    plane.add_argument("--priority", help="interactive (default) or batch, which is served after it")
    plane.add_argument("--rpm", type=int, dest="requests_per_minute", help="requests per minute")
    plane.add_argument("--tpm", type=int, dest="tokens_per_minute", help="tokens per minute, of prompts and answers")
    plane.add_argument("--concurrent", type=int, help="calls at the same time")
    plane.add_argument("--choices", type=int, help="answers to one question, `n` (default: 4)")
    plane.add_argument(
        "--cache", help="on: answers may come from the reply cache without being asked to (default: off)"
    )
    plane.add_argument("--record", help="meta (default), or body: keep what is asked and answered")
    return parser


def _terms(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of an entry that the command line says."""
    said = {name: value for name, value in vars(options).items() if value is not None}
    terms: dict[str, Any] = {name: said[name] for name in ("priority", "cache", "record") if name in said}
    limits = {name: said[name] for name in KeyLimits.model_fields if name in said}
    models = tuple(word.strip() for word in said.get("models", "").split(",") if word.strip())
    return {**terms, **({"limits": limits} if limits else {}), **({"models": models} if models else {})}


def main(arguments: list[str] | None = None) -> int:
    """The command line: print the new key on stdout, what to know on stderr."""
    options = _parser().parse_args(arguments)
    try:
        path: Path = options.file or load(ListenSettings).keys_path
        token = create_key(path, options.name, parse_scopes(options.scopes), **_terms(options))
    except (KeyFileError, SettingsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{token}\n")
    sys.stderr.write(f"stored its hash in {path}; the key is shown this once\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
