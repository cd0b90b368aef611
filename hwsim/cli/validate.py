"""``hwsim validate``: published measurements, and what hwsim predicts for their conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli.common import JsonOption, check_target, note, output, to_json, write_json
from hwsim.util.files import check_new_file, write_atomic


def validate(
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page with conditions, assumptions and reasons.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Predict published measurements, and show how far off that is.

    The predictions follow from the conditions that the publications state.

    Example: hwsim validate
    """
    from hwsim.report.validation import markdown as page
    from hwsim.report.validation import render
    from hwsim.studies.validate import predict, read_rows, summarize

    check_target(json)
    if markdown:
        check_new_file(markdown)
    listed = read_rows()
    predictions = [predict(row) for row in listed.predicted]
    summary = summarize(predictions)
    if markdown:
        write_atomic(markdown, page(predictions, summary, listed.left_out, listed.misses))
        note(f"Written to {markdown}")
    if json:
        write_json(
            json,
            to_json({
                "format": "hwsim-validation",
                "version": 1,
                "errors": {name: errors._asdict() for name, errors in summary.items()},
                "rows": [prediction.model_dump() for prediction in predictions],
                "left_out": [kind.model_dump() for kind in listed.left_out],
            }),
        )  # fmt: skip
    if json != "-":
        console = output()
        console.print(render(predictions, summary, console.width))
        console.print(f"\n{len(listed.left_out)} kinds of rows are left out; --json and --markdown give the reasons.")
