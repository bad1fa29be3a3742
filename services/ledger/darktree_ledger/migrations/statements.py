"""The steps' SQL lies in files of its own, so that it reads, and is highlighted, as what it is."""

from pathlib import Path

from alembic import op

_FOLDER = Path(__file__).parent / "sql"


def run_sql(name: str) -> None:
    """Run every statement of a file in `sql/`, in the migration's transaction."""
    op.get_bind().exec_driver_sql((_FOLDER / name).read_text().replace("%", "%%"))
