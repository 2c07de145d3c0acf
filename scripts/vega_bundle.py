"""Make the drawing library that every page carries: `python scripts/vega_bundle.py`.

Needs the extra [figures]. Writes `secateur/report/assets/vega.js.gz`: Vega, Vega-Lite and
Vega-Embed as one script, compressed to a third, in the package and in the page, which inflates it.
Run it at a release when altair's Vega-Lite moves on; the licence texts beside the bundle come from
the packages' own archives on the JavaScript registry.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import vl_convert

ASSETS = Path(__file__).parents[1] / "secateur" / "report" / "assets"


def bundle() -> bytes:
    """The compressed script, the same bytes on every run (no time stamp in the header)."""
    return gzip.compress(vl_convert.javascript_bundle().encode(), compresslevel=9, mtime=0)


def main() -> None:
    path = ASSETS / "vega.js.gz"
    path.write_bytes(bundle())
    versions = {
        "Vega": vl_convert.get_vega_version(),
        "Vega-Lite": vl_convert.get_vegalite_versions()[-1],
        "Vega-Embed": vl_convert.get_vega_embed_version(),
    }
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    (ASSETS / "vega.versions.txt").write_text(made + "\n")
    print(f"{path.name}: {path.stat().st_size:,} bytes ({made})")


if __name__ == "__main__":
    main()
