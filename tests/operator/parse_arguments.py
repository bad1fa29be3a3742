"""Run by the Python of `.venv-vllm`: reads lists of arguments as JSON, and says what vLLM's parser makes of each."""

import contextlib
import io
import json
import sys

from vllm.entrypoints.cli.serve import ServeSubcommand  # type: ignore[import-not-found]
from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]


def main() -> None:
    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    answers = []
    for arguments in json.load(sys.stdin):
        told = io.StringIO()
        try:
            with contextlib.redirect_stderr(told):
                parsed = vars(parser.parse_args(["serve", *arguments]))
            answers.append({name: value for name, value in parsed.items() if _plain(value)})
        except SystemExit:
            answers.append({"refused": told.getvalue()[-2000:]})
    json.dump(answers, sys.stdout)


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float | list) or value is None


if __name__ == "__main__":
    main()
