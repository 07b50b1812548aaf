"""``python -m benchmarks``: speed beside the recorded baseline."""

from benchmarks.bm_speed import main

raise SystemExit(main())
