"""The command line on a machine where things go wrong: ``python sabotage.py HOW VERB …``.

``tampered`` changes one byte of every engine after ``run``; ``slower`` measures with ``bench`` on
another device than the run, where networks that move less take longer; ``none`` changes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.cli.main import main

how, *arguments = sys.argv[1:]
if how == "slower" and arguments[0] == "bench":
    FakeBackend.__init__.__kwdefaults__.update(
        overhead_ms=1.0, ms_per_gmac=0.0, ms_per_mib=-0.5, name="another device"
    )
code = main(arguments)
if how == "tampered" and arguments[0] == "run":
    runs = Path(arguments[arguments.index("--runs-dir") + 1])
    for engine in runs.glob("*/engines/*/*.plan"):
        data = engine.read_bytes()
        engine.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
sys.exit(code)
