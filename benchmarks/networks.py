"""Networks that people bring: small ones of many families, most built by their libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torchvision
from torch import nn

from benchmarks import tasks

TIMM: dict[str, tuple[str, ...]] = {
    "byoanet": ("eca_botnext26ts_256",),
    "byobnet": (
        "mobileone_s0",
        "repvgg_a0",
        "gernet_s",
    ),
    "convmixer": ("convmixer_768_32",),
    "convnext": ("convnext_atto",),
    "cpubone": ("cpubone_nano",),
    "cspnet": (
        "cspresnet50",
        "darknet53",
        "cs3darknet_focus_s",
    ),
    "cspnext": ("cspnext_tiny",),
    "densenet": ("densenet121",),
    "dla": ("dla34",),
    "dpn": ("dpn48b",),
    "efficientformer": ("efficientformer_l1",),
    "efficientformer_v2": ("efficientformerv2_s0",),
    "efficientnet": (
        "efficientnet_b0",
        "mixnet_s",
        "mobilenetv2_100",
        "tf_efficientnet_lite0",
        "tinynet_e",
    ),
    "efficientvim": ("efficientvim_m1",),
    "efficientvit_msra": ("efficientvit_m0",),
    "fasternet": ("fasternet_s",),
    "fastvit": ("fastvit_t8",),
    "focalnet": ("focalnet_tiny_srf",),
    "ghostnet": ("ghostnet_050",),
    "hardcorenas": ("hardcorenas_b",),
    "hgnet": ("hgnetv2_b0",),
    "hrnet": ("hrnet_w18_small",),
    "iformer": ("iformer_s",),
    "inception_next": ("inception_next_atto",),
    "inception_resnet_v2": ("inception_resnet_v2",),
    "inception_v3": ("inception_v3",),
    "inception_v4": ("inception_v4",),
    "lcnetv2": ("lcnetv2_small",),
    "levit": ("levit_conv_192",),
    "lowformer": ("lowformer_b0",),
    "maxxvit": ("coatnet_pico_rw_224",),
    "metaformer": ("convformer_s18",),
    "mobilenetv3": (
        "lcnet_050",
        "mobilenetv3_small_050",
    ),
    "mobilevit": (
        "mobilevit_xxs",
        "mobilevitv2_050",
    ),
    "nextvit": ("nextvit_small",),
    "nfnet": (
        "nf_regnet_b0",
        "nf_resnet26",
    ),
    "rdnet": ("rdnet_tiny",),
    "regnet": ("regnetx_002",),
    "repghost": ("repghostnet_050",),
    "repvit": ("repvit_m1_0",),
    "res2net": ("res2next50",),
    "resnest": ("resnest26d",),
    "resnet": (
        "resnet18",
        "resnet50d",
        "seresnext26d_32x4d",
    ),
    "resnetv2": (
        "resnetv2_50",
        "resnetv2_18",
    ),
    "rexnet": ("rexnet_100",),
    "selecsls": ("selecsls42",),
    "senet": ("legacy_seresnet18",),
    "shvit": ("shvit_s1",),
    "sknet": ("skresnet18",),
    "starnet": ("starnet_s050",),
    "swiftformer": ("swiftformer_xs",),
    "tresnet": ("tresnet_m",),
    "vgg": ("vgg11_bn",),
    "visformer": ("visformer_tiny",),
    "vovnet": ("ese_vovnet19b_slim_dw",),
    "xception": ("legacy_xception",),
    "xception_aligned": ("xception41p",),
}
"""Small networks by family, which is the module of timm that has them: every family whose smallest
network has eight convolutions or more, and at least half of its weights in them. The last of a
family is the one that walks the whole pipeline."""

SIZES: dict[str, int] = {
    "eca_botnext26ts_256": 256,
    "levit_conv_192": 224,
    "coatnet_pico_rw_224": 224,
    "efficientvit_m0": 224,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "swiftformer_xs": 224,
    "visformer_tiny": 224,
    "nextvit_small": 224,
    "iformer_s": 224,
    "efficientvim_m1": 224,
    "cpubone_nano": 224,
    "shvit_s1": 224,
}
"""Pixels a side, where a network demands them."""

_LARGE = (
    "convmixer",
    "efficientformer",
    "efficientformer_v2",
    "focalnet",
    "iformer",
    "inception_resnet_v2",
    "inception_v4",
    "levit",
    "maxxvit",
    "metaformer",
    "nextvit",
    "rdnet",
    "swiftformer",
    "tresnet",
    "visformer",
    "xception",
    "xception_aligned",
)

CLASSIFIERS = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11",
)
SEGMENTERS = ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")
TASKS: dict[Callable[[], nn.Module], str] = {
    tasks.Yolo: "detection",
    tasks.ssdlite: "detection",
    tasks.UNet: "segmentation",
    tasks.Heatmaps: "key points",
    tasks.Edsr: "restoration",
    tasks.DnCnn: "restoration",
}


@dataclass(frozen=True)
class Network:
    """A network of a library.

    Attributes:
        name: ``LIBRARY:NAME``, or ``MODULE:FACTORY`` of one of ours.
        family: What it is related to.
        make: Builds it, with random weights.
        size: Pixels a side that it demands, or None.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    size: int | None = None

    @property
    def classifies(self) -> bool:
        """Whether it tells of one class for an image."""
        return self.family not in {"segmentation", *TASKS.values()}


def _torchvision(name: str) -> nn.Module:
    given: dict[str, Any] = {"weights": None}
    if name in SEGMENTERS:
        given["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        given["init_weights"] = False
    made: nn.Module = torchvision.models.get_model(name, **given)
    return made


NETWORKS: tuple[Network, ...] = (
    *(
        Network(f"timm:{name}", family, partial(timm.create_model, name), SIZES.get(name))
        for family, names in TIMM.items()
        for name in names
    ),
    *(
        Network(f"torchvision:{name}", "torchvision", partial(_torchvision, name))
        for name in CLASSIFIERS
    ),
    *(
        Network(f"torchvision:{name}", "segmentation", partial(_torchvision, name))
        for name in SEGMENTERS
    ),
    *(Network(f"benchmarks.tasks:{make.__name__}", task, make) for make, task in TASKS.items()),
)

WALKED: tuple[str, ...] = (
    *(f"timm:{names[-1]}" for family, names in TIMM.items() if family not in _LARGE),
    "torchvision:shufflenet_v2_x0_5",
    *(f"torchvision:{name}" for name in SEGMENTERS),
    *(f"benchmarks.tasks:{make.__name__}" for make in TASKS),
)
"""Networks that walk the whole pipeline: one of every family but those whose smallest are large,
and those of other tasks."""
