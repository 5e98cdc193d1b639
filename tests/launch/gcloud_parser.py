"""Parses commands with gcloud's own parser. Run with gcloud's Python; needs no account.

Reads JSON: {"root": gcloud's folder, "commands": lists of words, "flags_of": lists of words}.
Prints JSON: {"errors": for each of "commands" one line or null, "flags": for each of "flags_of" the
names of its flags}.
"""

import json
import pathlib
import sys

asked = json.load(sys.stdin)
root = pathlib.Path(asked["root"])
sys.path[:0] = [str(root / "lib"), str(root / "lib/third_party")]

from googlecloudsdk import gcloud_main  # noqa: E402

cli = gcloud_main.CreateCLI([])


def error_of(words):
    """The error of a command, or None. The parser prints details to standard error."""
    try:
        parsed = cli._CLI__parser.parse_args(words)
        if parsed.CONCEPT_ARGS is not None:
            parsed.CONCEPT_ARGS.ParseConcepts()
    except SystemExit:
        return "refused"
    except Exception as error:  # raised by the types of flags
        return f"{type(error).__name__}: {error}"
    return None


def flags_of(words):
    """The names of a command's flags, without hyphens."""
    node = cli._TopElement()
    for word in words:
        node = node.LoadSubElement(word)
    options = [option for flag in node.ai.flag_args for option in flag.option_strings]
    return sorted({option[2:] for option in options if option.startswith("--")})


answer = {
    "errors": [error_of(words) for words in asked["commands"]],
    "flags": [flags_of(words) for words in asked["flags_of"]],
}
json.dump(answer, sys.stdout)
