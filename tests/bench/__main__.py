"""``python -m tests.bench``: speed beside the recorded baseline."""

from tests.bench.bm_speed import main

raise SystemExit(main())
