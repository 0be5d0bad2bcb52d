"""The protocols of `dmlfast eval` by name: what each takes, and which one a file asks for."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlfast.errors import UserError

if TYPE_CHECKING:
    from dmlfast.retrieval import Features


@dataclass(frozen=True)
class Protocol:
    """What a protocol is, asks for and is reported by.

    summary: one line for people. ks: the K that papers report, None where the data set decides.
    apart: whether queries and gallery must be apart (True), must be one (False), or may be either.
    """

    summary: str
    ks: tuple[int, ...] | None = None
    apart: bool | None = None


PROTOCOLS = {
    "leave-one-out": Protocol("every image searches among all the others", apart=False),
    "query-gallery": Protocol("queries search in a separate gallery", apart=True),
    "vehicleid-dml": Protocol("leave-one-out on the whole test list", (1, 5), apart=False),
    "vehicleid-reid": Protocol(
        "the gallery is one random image of each identity; mean over draws", (1, 5), apart=False
    ),
    "nearest-centroid": Protocol("classify by the class means of --train-feats"),
    "knn": Protocol("classify by the nearest images in --train-feats"),
    "classifier": Protocol(
        "classify with the network's own classifier; --train-feats gives class counts"
    ),
    "zero-shot": Protocol("hit at K against unseen classes", (1, 2, 5, 10, 20)),
}
RETRIEVAL = ("leave-one-out", "query-gallery", "vehicleid-dml")  # what `evaluate` computes
CLASSIFICATION = ("nearest-centroid", "knn", "classifier")
OPTIONS = {  # those that not every protocol takes
    "--gallery-feats": ("query-gallery", "zero-shot"),
    "--train-feats": (*RETRIEVAL, *CLASSIFICATION, "zero-shot"),
    "--ks": (*RETRIEVAL, "vehicleid-reid", "zero-shot"),
    "--clustering": RETRIEVAL,
    "--clustering-runs": RETRIEVAL,
    "--kmeans": RETRIEVAL,
    "--draws": ("vehicleid-reid",),
    "--neighbours": ("knn",),
    "--vote": ("knn",),
    "--shots": CLASSIFICATION,
    "--against": ("zero-shot",),
    "--rank-by": (*RETRIEVAL, "vehicleid-reid", "knn", "zero-shot"),
    "--binary": (*RETRIEVAL, "vehicleid-reid", "nearest-centroid", "knn", "zero-shot"),
    "--learners": (*RETRIEVAL, "vehicleid-reid"),
    "--bootstrap": (*RETRIEVAL, *CLASSIFICATION, "zero-shot"),
    "--montage": RETRIEVAL,
}

KS = (1, 2, 4, 8)
DATA_SET_KS = {  # by how the names of data sets begin, without case and punctuation
    "cub": (1, 2, 4, 8),
    "cars": (1, 2, 4, 8),
    "sop": (1, 10, 100, 1000),
    "stanfordonlineproducts": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30, 40, 50),
    "vehicleid": (1, 5),
}


def choose_protocol(
    name: str | None, features: "Features", gallery: "Features | None" = None
) -> str:
    """The protocol called `name`, or without a name the retrieval that the files ask for.

    That is query-gallery where there is a gallery or the roles tell queries from gallery, else
    leave-one-out. Raises UserError in one line where the files do not fit the protocol.
    """
    apart = gallery is not None or roles_differ(features)
    if name is None:
        return "query-gallery" if apart else "leave-one-out"
    wanted = PROTOCOLS[name].apart
    if wanted is False and apart:
        raise UserError(
            f"protocol {name} uses every image as both query and gallery, but"
            f" {features.source} separates them (/role): use query-gallery"
        )
    if wanted and not apart:
        raise UserError(
            f"protocol {name} needs --gallery-feats, or a /role in {features.source}"
            " that separates queries from gallery"
        )
    return name


def default_ks(protocol: str, features: "Features") -> tuple[int, ...]:
    """The K that papers report by this protocol on this data set; 1, 2, 4, 8 where none do."""
    usual = PROTOCOLS[protocol].ks
    if usual is not None:
        return usual
    name = re.sub("[^a-z0-9]", "", str(features.attributes.get("dataset", "")).lower())
    return next((ks for begin, ks in DATA_SET_KS.items() if name.startswith(begin)), KS)


def roles_differ(features: "Features") -> bool:
    """Whether some row is not both query and gallery."""
    return features.roles is not None and bool(features.roles.any())
