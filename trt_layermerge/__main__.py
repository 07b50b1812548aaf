"""``python -m trt_layermerge`` is the command ``trt-layermerge``."""

import sys

from trt_layermerge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
