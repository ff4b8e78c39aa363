"""Writing a report: ``report.json``, ``report.html`` and ``sheet.png``, whole or not at all."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

from copier.evaluation.report_data import ReportData
from copier.evaluation.report_html import report_html
from copier.evaluation.report_json import report_json
from copier.evaluation.report_sheet import report_sheet
from copier.temporary import replace_file

GENERATOR = '<meta name="generator" content="copier">'
"""What every page has in its head: by it our reports are told from other programs'."""


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written."""

    json: Path
    html: Path
    sheet: Path


def write_report(data: ReportData, folder: Path) -> ReportFiles:
    """Write the three files of the report into ``folder``, which is made if it is missing.

    All three are made before the first is written, and each replaces its predecessor in one step.
    The page comes first, because it can be known as ours; ``report.json`` last: where it is new, the
    others are.

    Raises:
        OSError: the folder cannot be written to; no temporary file is left.
    """
    files = ReportFiles(folder / "report.json", folder / "report.html", folder / "sheet.png")
    sheet = io.BytesIO()
    report_sheet(data).save(sheet, format="PNG")
    figures = json.dumps(report_json(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    page = report_html(data)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(files.html, page.encode(), point="report")
    replace_file(files.sheet, sheet.getvalue(), point="report")
    replace_file(files.json, figures.encode(), point="report")
    return files
