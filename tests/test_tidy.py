"""The tree obeys its own style: each rule that matters is a test here, and names where it is broken."""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("operator/", "services/", "cli/")
CODE = (*PACKAGES, "tests/", "benchmarks/", "scripts/", "dashboards/")
MAX_LINES = 400
MAX_TEST_LINES = 600
MAX_FUNCTION_LINES = 70

Finding = tuple[int, str]


@cache
def tracked_files() -> tuple[str, ...]:
    """Return every file that is, or is about to be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return tuple(sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file()))


def python_files(*folders: str) -> list[str]:
    return [name for name in tracked_files() if name.endswith(".py") and name.startswith(folders)]


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), filename=name)


def findings(names: list[str], rule: Callable[[ast.AST], Iterator[Finding]]) -> list[str]:
    """Return `file:line: what` for each node of each file that breaks the rule."""
    return [
        f"{name}:{line}: {what}"
        for name in names
        for node in ast.walk(tree_of(name))
        for line, what in rule(node)
    ]


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for an expression of names, else what is known of it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports(node: ast.AST) -> list[str]:
    """Return the full names that an import statement brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def report(problems: list[str], advice: str) -> None:
    assert not problems, advice + "\n  " + "\n  ".join(problems)


def test_only_settings_modules_read_the_environment() -> None:
    def rule(node: ast.AST) -> Iterator[Finding]:
        names = (
            [dotted(node), *imports(node)]
            if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom)
            else []
        )
        if any(name in {"os.environ", "os.environb", "os.getenv", "os.putenv"} for name in names):
            yield getattr(node, "lineno", 0), "reads the environment"

    names = [name for name in python_files(*PACKAGES) if Path(name).name != "settings.py"]
    report(findings(names, rule), "Read the environment in the package's settings.py.")


def test_only_kits_http_and_channel_and_the_gateways_connections_call_over_http() -> None:
    clients = re.compile(r"(aiohttp|httptools|httpx|requests|urllib3|urllib\.request|http\.client)(\.|$)")

    def rule(node: ast.AST) -> Iterator[Finding]:
        for name in imports(node):
            if clients.match(name):
                yield getattr(node, "lineno", 0), f"imports {name}"

    kit = {f"services/kit/darktree_kit/{name}.py" for name in ("http", "channel", "cluster")}
    # The stand-in for Stripe knows nothing of Darktree: it calls the webhook itself, and its client calls it.
    own = {
        f"services/stripe_simulator/darktree_stripe_simulator/{name}.py" for name in ("webhooks", "client")
    }
    allowed = kit | own | {"services/gateway/darktree_gateway/connections.py"}
    names = [name for name in python_files(*PACKAGES) if name not in allowed]
    report(findings(names, rule), "Use darktree_kit.http, or the gateway's upstream.")


def test_only_kit_makes_engines_and_commits() -> None:
    made = {"create_engine", "create_async_engine", "sessionmaker", "async_sessionmaker"}

    def rule(node: ast.AST) -> Iterator[Finding]:
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            last = name.rpartition(".")[2]
            if last in made or (last == "commit" and "." in name):
                yield node.lineno, f"calls {name}()"

    allowed = {"services/kit/darktree_kit/db.py", "services/kit/darktree_kit/migrate.py"}
    names = [name for name in python_files(*PACKAGES) if name not in allowed]
    report(findings(names, rule), "Sessions, engines and commits are darktree_kit.db's and .migrate's.")


def test_only_kits_clock_asks_what_time_it_is() -> None:
    asks = re.compile(
        r"(time\.(time|time_ns|monotonic|monotonic_ns|perf_counter)"
        r"|(datetime\.)?(datetime\.(now|utcnow|today)|date\.today))$"
    )

    def rule(node: ast.AST) -> Iterator[Finding]:
        names = [dotted(node), *imports(node)] if isinstance(node, ast.Attribute | ast.ImportFrom) else []
        for name in names:
            if asks.match(name):
                yield getattr(node, "lineno", 0), name

    # The simulators know nothing of Darktree, so they have clocks of their own.
    own = (
        "services/kit/darktree_kit/clock.py",
        "services/simulator/",
        "services/stripe_simulator/darktree_stripe_simulator/app.py",
    )
    names = [name for name in python_files(*PACKAGES) if not name.startswith(own)]
    report(findings(names, rule), "Use darktree_kit.clock, or take a clock as an argument.")


def test_money_is_never_a_float() -> None:
    def is_float(annotation: ast.AST | None) -> bool:
        return annotation is not None and any(dotted(node) == "float" for node in ast.walk(annotation))

    def rule(node: ast.AST) -> Iterator[Finding]:
        if (
            isinstance(node, ast.AnnAssign)
            and dotted(node.target).endswith("_nanos")
            and is_float(node.annotation)
        ):
            yield node.lineno, f"{dotted(node.target)} is a float"
        if isinstance(node, ast.arg) and node.arg.endswith("_nanos") and is_float(node.annotation):
            yield node.lineno, f"{node.arg} is a float"
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_nanos") and is_float(node.returns):
            yield node.lineno, f"{node.name} returns a float"

    report(findings(python_files(*CODE), rule), "Amounts are integers of nano-dollars.")


def test_no_module_about_money_knows_floats() -> None:
    def rule(node: ast.AST) -> Iterator[Finding]:
        if dotted(node) == "float" or (isinstance(node, ast.Constant) and isinstance(node.value, float)):
            yield getattr(node, "lineno", 0), "float"

    about_money = {
        "money.py",
        "plans.py",
        "prices.py",
        "holds.py",
        "entries.py",
        "payments.py",
        "statements.py",
    }
    names = [name for name in python_files(*PACKAGES) if Path(name).name in about_money]
    report(findings(names, rule), "Use integers and Decimal.")


def test_neither_tests_nor_the_operators_folder_is_a_package() -> None:
    wrong = [
        name
        for name in tracked_files()
        if name == "operator/__init__.py" or (name.startswith("tests/") and name.endswith("__init__.py"))
    ]
    report(wrong, "These would shadow the standard library's modules.")


def test_every_module_says_its_idea_first() -> None:
    report(
        [f"{name}:1" for name in python_files(*CODE) if not ast.get_docstring(tree_of(name))], "No docstring."
    )


def test_no_module_has_a_name_that_says_nothing() -> None:
    nothing = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}
    report(
        [name for name in python_files(*CODE) if Path(name).stem in nothing], "Name the module by its noun."
    )


def test_every_package_has_a_readme() -> None:
    folders = {"/".join(name.split("/")[:2]) for name in python_files("services/")} | {"cli", "operator"}
    report(
        [f"{folder}/README.md" for folder in sorted(folders) if not (ROOT / folder / "README.md").is_file()],
        "Missing.",
    )


def test_the_lock_holds_a_version_and_hashes_and_no_address() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    problems = []
    for number, line in enumerate(lines, 1):
        if re.search(r"://|--(index-url|extra-index-url|find-links)|\s@\s", line):
            problems.append(f"requirements.lock:{number}: an address")
        if (
            line
            and not line.startswith("    ")
            and not re.match(r"[a-z0-9._-]+(\[[a-z,_-]+\])?==\S+.* \\$", line)
        ):
            problems.append(f"requirements.lock:{number}: not name==version followed by hashes")
        if line.startswith("    ") and not re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            problems.append(f"requirements.lock:{number}: not a hash")
    report(problems, "Run make lock.")


def test_no_file_names_this_machine_or_a_registry() -> None:
    machine = re.compile(r"(?<![\w.~})>-])/(?:work|root|home)/\w")
    hosts = "|".join(("pypi", "pythonhosted", "npmjs", "registry", "deb.debian", "artifactory", "nexus"))
    registry = re.compile(rf"https?://[^/\s\"']*(?:{hosts})", re.IGNORECASE)
    problems = []
    for name in tracked_files():
        # The notes between those who build this are removed before it is released.
        if name.endswith((".tmp.md", "requirements.lock")):
            continue
        for number, line in enumerate((ROOT / name).read_text(errors="ignore").splitlines(), 1):
            if machine.search(line) or registry.search(line):
                problems.append(f"{name}:{number}: {line.strip()[:100]}")
    report(problems, "Nothing here may depend on one machine's paths or hosts.")


def test_every_relative_link_in_the_documents_leads_somewhere() -> None:
    link = re.compile(r"(?<!`)\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
    problems = []
    for name in (name for name in tracked_files() if name.endswith(".md")):
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            for target in link.findall(line):
                if not (ROOT / name).parent.joinpath(target).exists():
                    problems.append(f"{name}:{number}: {target}")
    report(problems, "A link leads nowhere.")


def test_every_target_of_the_makefile_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z0-9-]*):(?!=)(.*)$", text, re.MULTILINE)
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split())  # type: ignore[union-attr]
    report([f"Makefile: {name}" for name, rest in targets if "## " not in rest], "Add `## what it does`.")
    assert phony == {name for name, _ in targets}, ".PHONY must name exactly the targets"


def test_files_and_functions_fit_their_bounds() -> None:
    problems = []
    for name in python_files(*CODE):
        if "/migrations/" in name:  # SQL, whose bound is the statement's own sense
            continue
        bound = MAX_TEST_LINES if name.startswith("tests/") else MAX_LINES
        lines = len((ROOT / name).read_text().splitlines())
        if lines > bound:
            problems.append(f"{name}: {lines} lines, more than {bound}")
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    problems.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
    report(problems, f"A function fits in {MAX_FUNCTION_LINES} lines; split by idea.")


def test_each_services_migrations_are_one_line() -> None:
    """Two that follow the same one leave two heads, and nothing can be migrated to the newest."""
    folders = {
        str(Path(name).parent) for name in python_files("services/") if "/migrations/versions/" in name
    }
    assert folders
    for folder in folders:
        told = []
        for name in python_files(folder + "/"):
            values = {
                node.targets[0].id: ast.literal_eval(node.value)
                for node in tree_of(name).body
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id in {"revision", "down_revision"}
            }
            told.append((values["down_revision"], values["revision"], Path(name).name.partition("_")[0]))
        told.sort(key=lambda one: one[1])
        line = [None, *(revision for _, revision, _ in told)]
        assert told == [(before, after, after) for before, after in pairwise(line)], folder
