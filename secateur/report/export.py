"""The page's figures as files: SVG, PDF and PNG, drawn without a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError, lookup
from secateur.report.view import View

FORMATS = {"svg": "vector, for the web", "pdf": "vector, for print", "png": "pixels, two a point"}


def save_figures(
    view: View, folder: str | Path, formats: Sequence[str] = ("svg", "pdf", "png")
) -> list[Path]:
    """Write each figure of `view` as ``FOLDER/STUDY-FIGURE.FORMAT`` and return the paths.

    Raises:
        SecateurError: for an unknown format, or where vl-convert is not installed.
    """
    for name in formats:
        lookup("figure format", name, FORMATS)
    convert = _converter()  # before anything is written
    from secateur.report import charts

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for curves in view.figures:
        svg = convert.vegalite_to_svg(charts.draw(view, curves, charts.PRINT))
        for name in formats:
            path = folder / f"{view.study}-{curves.name}.{name}"
            _write(svg, path)
            paths.append(path)
    return paths


def save(spec: Mapping[str, Any], path: str | Path) -> None:
    """Write one Vega-Lite specification; the ending of ``path`` says the format.

    Raises:
        SecateurError: for an unknown format, or where vl-convert is not installed.
    """
    lookup("figure format", Path(path).suffix.removeprefix("."), FORMATS)
    _write(_converter().vegalite_to_svg(spec), Path(path))


def _write(svg: str, path: Path) -> None:
    from secateur.report import files

    if path.suffix == ".svg":
        files.publish(path, svg.encode())
    elif path.suffix == ".pdf":
        files.publish(path, _converter().svg_to_pdf(svg))
    else:
        files.publish(path, _converter().svg_to_png(svg, scale=2))


def _converter() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise SecateurError(
            "figures as files need vl-convert, which is not installed: "
            "run pip install 'secateur[figures]'."
        ) from error
    return vl_convert
