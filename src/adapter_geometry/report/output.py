"""The folder of a report: page, JSON and tables, written and replaced as one unit.

Comes after `page` and `programs`, whose results it writes; writes that folder and nothing else.
"""

import json
from pathlib import Path

from adapter_geometry import storage
from adapter_geometry.report import programs
from adapter_geometry.report.findings import Findings

PAGE, NUMBERS = "report.html", "report.json"
_CSV_ROWS = 100_000  # a longer table is no use to what reads CSV, and is Parquet alone


def require_own(folder: str | Path) -> Path:
    """The path of a folder that a report may take the place of: there is none, or it is empty or
    holds a report and nothing else; AdapterError naming what it holds otherwise."""
    return storage.require_replaceable(folder, _written(Path(folder)), "a report")


def _written(folder: Path) -> set[str]:
    """Names of the files of the report in a folder, by its own list of tables."""
    try:
        tables = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))["tables"]
        files = {f"{name}.{ending}" for name in tables for ending in ("parquet", "csv")}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {PAGE, NUMBERS, *files}


def write(findings: Findings, folder: str | Path) -> Path:
    """Write `report.html`, `report.json` and each table as Parquet and, up to 100,000 rows, as CSV;
    returns the path of the page. A report that is in the folder is replaced as a whole.

    Raises AdapterError if the folder holds anything else.
    """
    from adapter_geometry.report import page  # jinja2, which a summary does without

    path = require_own(folder)
    with storage.whole(path) as temporary:
        temporary.mkdir()
        for name, table in findings.tables.items():
            storage.write_frame(temporary / f"{name}.parquet", table)
            if len(table) <= _CSV_ROWS:
                table.to_csv(temporary / f"{name}.csv", index=False)
        numbers = json.dumps(programs.as_json(findings), indent=2, ensure_ascii=False)
        (temporary / NUMBERS).write_text(numbers, encoding="utf-8")
        (temporary / PAGE).write_text(page.render(findings), encoding="utf-8")
    return Path(folder) / PAGE
