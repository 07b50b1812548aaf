"""Found by every Python that is started with this folder on its path: workers get into trouble."""

import sys

if "--worker" in sys.orig_argv:
    from tests.agent.trouble import TroubledBackend
    from trt_layermerge.measure.agent import fake

    fake.FakeBackend = TroubledBackend
